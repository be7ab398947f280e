"""The benchmarks in their smoke size: that they run, and what they compare."""

import os
import subprocess
import sys
from pathlib import Path

from absl.testing import parameterized

from tests.base import TestCase

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


class BenchmarksTest(TestCase):
    def test_all(self):
        """The folder itself: a table, a figure, and what moved against an earlier run."""
        folder = Path(self.get_temp_dir())
        command = [sys.executable, BENCHMARKS, "--smoke", "--output", folder]
        for more in ([], ["--baseline", folder / "table.csv"]):
            run = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
            self.assertEqual(run.returncode, 0, run.stderr)
            self.assertIn("| 8 |", run.stdout)
        self.assertRegex(run.stdout, r"against .*table.csv:\n  (\d experts, .* -> |nothing moved)")
        self.assertGreater((folder / "latency.png").stat().st_size, 10_000)
        table = (folder / "table.csv").read_text().splitlines()
        self.assertLen(table, 3)
        self.assertStartsWith(table[0], "experts,floor (ms),training step (ms)")

    def test_overhead(self):
        folder = Path(self.get_temp_dir()) / "overhead"
        command = [sys.executable, BENCHMARKS / "overhead.py", "--smoke", "--output", folder]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("| whole layer |", run.stdout)  # of the cost model
        self.assertLen((folder / "overhead.csv").read_text().splitlines(), 4)
        self.assertGreater((folder / "overhead.png").stat().st_size, 10_000)

    @parameterized.named_parameters(
        ("layer", ["layer.py", "--skews", "0", "0.7", "--against", "einsum", "per_expert", "all"], "| 64x8 | 0.70 |"),
        ("batching", ["batching.py"], "| 2 | 8 | 4.00 |"),
        ("gate", ["gate.py"], "| 64 |"),
        ("inference", ["inference.py"], "| 2 |"),
        ("large", ["large.py"], "| 8 |"),
        ("lstm", ["lstm.py", "--jit"], "| 2x3x4 |"),
        ("optimizer", ["optimizer.py"], "| 4 |"),
        ("softmax", ["softmax.py"], "| 50 |"),
        ("whole", ["whole.py"], "| input pipeline |"),
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
