"""The paper's experiments in their smoke size: that they run, go on, and draw what the table holds."""

import csv
import subprocess
import sys
from pathlib import Path

from tests.base import TestCase

PAPER = Path(__file__).parents[2] / "examples" / "paper"


class PaperTest(TestCase):
    def run_study(self, folder, *arguments):
        command = [sys.executable, PAPER, *arguments, "--smoke", "--output", folder]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(run.returncode, 0, run.stderr)
        with (folder / "table.csv").open(newline="") as lines:
            return run.stdout, list(csv.DictReader(lines))

    def test_family_goes_on_where_it_ended(self):
        folder = Path(self.get_temp_dir()) / "family"
        family = ("family", "--networks")
        output, rows = self.run_study(folder, *family, "MoE-4", "MoE-1-Deep")
        self.assertNotIn("done before", output)
        self.assertEqual([row["network"] for row in rows], ["MoE-4", "MoE-1-Deep"])
        self.assertIn("| MoE-1-Deep |  | 0 | 8192 | 8192 |", output)
        for row in rows:
            self.assertBetween(float(row["test_perplexity"]), 10, 45)  # after four steps, of 40 words
            self.assertGreater(float(row["gradient_norm_max"]), 0)
            self.assertEqual(row["tokens"], "128")
        self.assertEqual([row["load_cv"] != "" for row in rows], [True, False])
        output, more = self.run_study(folder, *family, "MoE-4", "LSTM-2048-512", "--factored")
        self.assertNotIn("done before", output)  # with another optimizer it is another run
        output, more = self.run_study(folder, *family, "MoE-4", "LSTM-2048-512", "MoE-1-Deep")
        self.assertIn("[1/3] MoE-4 seed 0: done before", output)
        self.assertIn("[2/3] LSTM-2048-512 seed 0\n", output)
        self.assertLen(more, 5)
        self.assertEqual(more[:2], rows)
        self.assertGreater((folder / "perplexity_by_experts.png").stat().st_size, 10_000)
        self.assertFalse((folder / "perplexity_by_ops.png").exists())  # of networks that cost the same

    def test_balance(self):
        folder = Path(self.get_temp_dir()) / "balance"
        variants = ["importance 0, load 0", "importance 0.1, load 0.1"]
        output, rows = self.run_study(folder, "balance", "--networks", "MoE-4", "--variants", *variants)
        self.assertIn("| MoE-4 | importance 0.1, load 0.1 | 0 |", output)
        self.assertLen(rows, 2)
        self.assertGreater((folder / "balance_MoE-4.png").stat().st_size, 10_000)

    def test_ablations_on_text(self):
        data, folder = Path(self.get_temp_dir()) / "data", Path(self.get_temp_dir()) / "ablations"
        data.mkdir()
        for part, lines in (("train", 200), ("valid", 20), ("test", 20)):
            words = self.rng.choice(["the", "cat", "dog", "sat", "ran", "on", "a", "mat"], (lines, 12))
            (data / f"{part}.txt").write_text("".join(" ".join(line) + "\n" for line in words))
        variants = ["no noise", "strictly balanced", "no sigmoid"]
        arguments = ["--corpus", data, "--words", "11", "--networks", "MoE-4", "--variants", *variants]
        _, rows = self.run_study(folder, "ablations", *arguments)
        output, again = self.run_study(folder, "ablations", *arguments)
        self.assertEqual(output.count("done before"), 3)
        self.assertEqual(again, rows)
        self.assertIn("| MoE-4 | strictly balanced | 0 |", output)
        self.assertCountEqual([row["variant"] for row in rows], variants)
        self.assertEqual({row["floor"] for row in rows}, {""})
        self.assertGreater((folder / "ablations.png").stat().st_size, 10_000)

    def test_wrong_arguments_are_explained(self):
        for arguments, message in (
            (["family", "--facts", "1"], "fact_probability must be a number from 0 to under 1. Received"),
            (["balance", "--networks", "MoE-1-Wide"], "about mixtures of experts. Received: --networks with"),
            (["ablations", "--variants", "none"], "--variants must be some of ['as in the paper'"),
        ):
            command = [sys.executable, PAPER, *arguments, "--output", self.get_temp_dir()]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            self.assertEqual(run.returncode, 1)
            self.assertIn(message, run.stderr)
            self.assertNotIn("Traceback", run.stderr)
