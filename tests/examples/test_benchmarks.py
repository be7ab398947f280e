"""The benchmarks in their smoke size: that they run, and what they compare."""

import os
import subprocess
import sys
from pathlib import Path

from absl.testing import parameterized

from tests.base import TestCase

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


class BenchmarksTest(TestCase):
    @parameterized.named_parameters(
        ("layer", ["layer.py", "--skews", "0", "0.7", "--against", "einsum", "per_expert", "all"], "| 64x8 | 0.70 |"),
        ("gate", ["gate.py"], "| 64 |"),
        ("inference", ["inference.py"], "| 2 |"),
        ("large", ["large.py"], "| 8 |"),
        ("lstm", ["lstm.py", "--jit"], "| 2x3x4 |"),
        ("optimizer", ["optimizer.py"], "| 4 |"),
        ("mesh", ["mesh.py"], "| smoke |"),
        ("traffic", ["mesh.py", "--traffic"], "| 2 x 1 | 16 |"),
    )
    def test_smoke(self, command, row):
        environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
        run = subprocess.run(
            [sys.executable, BENCHMARKS / command[0], *command[1:], "--smoke"],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn(row, run.stdout)
