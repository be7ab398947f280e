"""The benchmarks in their smoke size: that they run, and what they compare."""

import os
import subprocess
import sys
from pathlib import Path

from absl.testing import parameterized

from tests.base import TestCase
from tests.examples.program import EXAMPLES, run

BENCHMARKS = EXAMPLES / "benchmarks"


class BenchmarksTest(TestCase):
    def test_all(self):
        """The folder itself: a table, a figure, and what moved against an earlier run."""
        folder = Path(self.get_temp_dir())
        for more in ([], ["--baseline", folder / "table.csv"]):
            outcome = run(BENCHMARKS, "--smoke", "--output", folder, *more)
            self.assertEqual(outcome.returncode, 0, outcome.stderr)
            self.assertIn("| 8 |", outcome.stdout)
        self.assertRegex(outcome.stdout, r"against .*table.csv:\n  (\d experts, .* -> |nothing moved)")
        self.assertGreater((folder / "latency.png").stat().st_size, 10_000)
        table = (folder / "table.csv").read_text().splitlines()
        self.assertLen(table, 3)
        self.assertStartsWith(table[0], "experts,floor (ms),training step (ms)")

    def test_overhead(self):
        folder = Path(self.get_temp_dir()) / "overhead"
        outcome = run(BENCHMARKS / "overhead.py", "--smoke", "--output", folder)
        self.assertEqual(outcome.returncode, 0, outcome.stderr)
        self.assertIn("| whole layer |", outcome.stdout)  # of the cost model
        self.assertLen((folder / "overhead.csv").read_text().splitlines(), 4)
        self.assertGreater((folder / "overhead.png").stat().st_size, 10_000)

    @parameterized.named_parameters(
        ("layer", ["layer.py", "--skews", "0", "0.7", "--against", "einsum", "per_expert", "all"], "| 64x8 | 0.70 |"),
        ("batching", ["batching.py"], "| 2 | 8 | 4.00 |"),
        ("gate", ["gate.py"], "| 64 |"),
        ("gates", ["gate.py", "--kinds"], "| (8, 8) | hierarchical |"),
        ("inference", ["inference.py"], "| 2 |"),
        ("large", ["large.py"], "| 8 |"),
        ("lstm", ["lstm.py", "--jit"], "| 2x3x4 |"),
        ("optimizer", ["optimizer.py"], "| 4 |"),
        ("softmax", ["softmax.py"], "| 50 |"),
        ("whole", ["whole.py"], "| input pipeline |"),
    )
    def test_smoke(self, command, row):
        outcome = run(BENCHMARKS / command[0], *command[1:], "--smoke")
        self.assertEqual(outcome.returncode, 0, outcome.stderr)
        self.assertIn(row, outcome.stdout)

    @parameterized.named_parameters(
        ("mesh", ["mesh.py"], "| smoke |"),
        ("traffic", ["mesh.py", "--traffic"], "| 2 x 1 | 16 |"),
    )
    def test_smoke_in_a_process_of_its_own(self, command, row):  # which decides how many devices there are
        environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
        process = subprocess.run(
            [sys.executable, BENCHMARKS / command[0], *command[1:], "--smoke"],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        self.assertEqual(process.returncode, 0, process.stderr)
        self.assertIn(row, process.stdout)
