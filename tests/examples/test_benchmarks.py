"""The benchmarks in their smoke size: that they run, and what they compare."""

import argparse
import contextlib
import csv
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import parameterized

from tests.base import TestCase
from tests.examples.program import EXAMPLES, load, run
from tests.processes import run_python
from tf_moe.layers import SparseMoE
from tf_moe.text import Corpus, Text

BENCHMARKS = EXAMPLES / "benchmarks"


class BenchmarksTest(TestCase):
    def test_all(self):
        """The folder itself: a table, a figure, and what moved against an earlier run."""
        folder = Path(self.get_temp_dir())
        baseline = folder / "table.csv"  # which the run itself writes too
        baseline.write_text("experts,floor (ms),one token (ms)\n8,1e6,2e6\n64,1,1\n")
        outcome = run(BENCHMARKS, "--smoke", "--output", folder, "--baseline", baseline)
        self.assertEqual(outcome.returncode, 0, outcome.stderr)
        self.assertIn("| 8 |", outcome.stdout)
        moved = (
            r"table.csv:\n  8 experts, floor \(ms\): 1000000.0 -> .*\n  8 experts, one token \(ms\): 2000000.0 -> .*\n$"
        )
        self.assertRegex(outcome.stdout, moved)
        self.assertGreater((folder / "latency.png").stat().st_size, 10_000)
        table = (folder / "table.csv").read_text().splitlines()
        self.assertLen(table, 3)
        self.assertStartsWith(table[0], "experts,floor (ms),training step (ms)")

    def test_quick_changes_defaults_and_nothing_that_was_asked_for(self):
        main, measured = load(BENCHMARKS / "__main__.py").main, []

        def measure(experts, options):
            measured.append((experts, options.repetitions))
            raise KeyboardInterrupt

        for arguments in ([], ["--experts", "1024"], ["--repetitions", "10"]):
            with mock.patch.dict(main.__globals__, measure=measure), self.assertRaises(KeyboardInterrupt):
                main(["--quick", "--output", self.get_temp_dir(), *arguments])
        self.assertEqual(measured, [(4, 3), (1024, 3), (4, 10)])

    def test_wrong_arguments_are_explained(self):
        """Before anything is timed: none of these is a smoke run."""
        folder = Path(self.get_temp_dir())
        (folder / "overhead.csv").write_text("number,floor\n4,1.0\n")
        for command, message in (
            (
                ["__main__.py", "--baseline", folder / "none.csv"],
                "the table.csv of an earlier run. Received: '/.*none.csv'",
            ),
            (["__main__.py", "--baseline", folder / "overhead.csv"], "the table.csv of an earlier run. Received: '/"),
            (["lstm.py", "--repetitions", 0], "--repetitions: must be at least 1, not 0"),
            (["overhead.py", "--experts", 4, 8, 4], r"--experts must be three numbers or more.* Not \[4, 8\]"),
        ):
            outcome = run(BENCHMARKS / command[0], *command[1:])
            self.assertEqual(outcome.returncode, 2)
            self.assertRegex(outcome.stderr, message)

    def test_overhead(self):
        folder = Path(self.get_temp_dir()) / "overhead"
        outcome = run(BENCHMARKS / "overhead.py", "--smoke", "--output", folder)
        self.assertEqual(outcome.returncode, 0, outcome.stderr)
        self.assertIn("| whole layer |", outcome.stdout)  # of the cost model
        self.assertLen((folder / "overhead.csv").read_text().splitlines(), 4)
        self.assertGreater((folder / "overhead.png").stat().st_size, 10_000)

    def test_skewed_loads_of_more_experts_than_features(self):
        layer = SparseMoE(96, 8, k=4)
        layer.build((None, 64))
        x, _ = load(BENCHMARKS / "layer.py").make_fresh(self.rng, layer, tokens=2000, skew=0.7)()
        load_ = np.sort(np.bincount(np.ravel(layer.route(x, training=True).expert_index), minlength=96))
        self.assertBetween(load_[-1] / load_.mean(), 6, 12)  # 1 / n ** 0.7 of 96 makes it 8.8 for a draw of one
        self.assertBetween(np.median(load_) / load_.mean(), 0.4, 0.8)

    @parameterized.named_parameters(
        ("layer", ["layer.py"], "| 64x8 | 0.00 |"),
        ("contenders", ["layer.py", "--skews", "0.7", "--against", "einsum", "per_expert", "all"], "| 64x8 | 0.70 |"),
        ("batching", ["batching.py"], "| 2 | 8 | 4.00 |"),
        ("gate", ["gate.py"], "| 64 |"),
        ("gates", ["gate.py", "--kinds"], "| (8, 8) | hierarchical |"),
        ("generator", ["generator.py", "--read"], "| yes |"),
        ("inference", ["inference.py"], "| 2 |"),
        ("large", ["large.py"], "| 8 |"),
        ("lstm", ["lstm.py", "--jit"], "| 2x3x4 |"),
        ("optimizer", ["optimizer.py"], "| 4 |"),
        ("softmax", ["softmax.py"], "| 50 |"),
        ("traffic", ["mesh.py", "--traffic"], "| 2 x 1 | 16 |"),  # takes eight devices, as this process has
    )
    def test_smoke(self, command, row):
        outcome = run(BENCHMARKS / command[0], *command[1:], "--smoke")
        self.assertEqual(outcome.returncode, 0, outcome.stderr)
        self.assertIn(row, outcome.stdout)

    def test_whole(self):
        """On few of the standard library's files: all of them take longer than the rest."""
        texts = [Text([file]) for file in (Path(argparse.__file__), Path(contextlib.__file__), Path(csv.__file__))]
        with mock.patch.object(Corpus, "standard_library", return_value=Corpus(*texts)):
            outcome = run(BENCHMARKS / "whole.py", "--smoke")
        self.assertEqual(outcome.returncode, 0, outcome.stderr)
        self.assertIn("| input pipeline |", outcome.stdout)

    def test_mesh_in_a_process_of_its_own(self):  # which decides how many devices there are
        self.assertIn("| smoke |", run_python(BENCHMARKS / "mesh.py", "--smoke").stdout)
