"""The paper's experiments in their smoke size: that they run, go on, and draw what the table holds."""

import contextlib
import csv
from pathlib import Path

from tests.base import TestCase
from tests.examples.program import EXAMPLES, eagerly, load, run

PAPER = EXAMPLES / "paper"


class PaperTest(TestCase):
    def run_study(self, folder, *arguments, trace=False):
        with contextlib.nullcontext() if trace else eagerly():
            outcome = run(PAPER, *arguments, "--smoke", "--output", folder)
        self.assertEqual(outcome.returncode, 0, outcome.stderr)
        with (folder / "table.csv").open(newline="") as lines:
            return outcome.stdout, list(csv.DictReader(lines))

    def test_family_goes_on_where_it_ended(self):
        folder = Path(self.get_temp_dir()) / "family"
        family = ("family", "--networks")
        output, rows = self.run_study(folder, *family, "MoE-4", "MoE-1-Deep", trace=True)
        self.assertNotIn("done before", output)
        self.assertEqual([row["network"] for row in rows], ["MoE-4", "MoE-1-Deep"])
        self.assertIn("| MoE-1-Deep |  | 16 | 1 | 0 | 8192 | 8192 |", output)
        for row in rows:
            self.assertBetween(float(row["test_perplexity"]), 10, 45)  # after four steps, of 40 words
            self.assertGreater(float(row["gradient_norm_max"]), 0)
            self.assertEqual(row["tokens"], "128")
        for column in ("load_cv", "dropped_at_1.25"):
            self.assertEqual([row[column] != "" for row in rows], [True, False])
        output, more = self.run_study(folder, *family, "MoE-4", "--factored", trace=True)
        self.assertNotIn("done before", output)  # with another optimizer it is another run
        output, more = self.run_study(folder, *family, "MoE-4", "LSTM-2048-512", "MoE-1-Deep", trace=True)
        self.assertIn("[1/3] MoE-4, width 16, seed 0: done before", output)
        self.assertIn("[2/3] LSTM-2048-512, width 16, seed 0\n", output)
        self.assertLen(more, 4)
        self.assertEqual(more[:2], rows)
        self.assertGreater((folder / "perplexity_by_experts.png").stat().st_size, 10_000)
        self.assertFalse((folder / "perplexity_by_ops.png").exists())  # of networks that cost the same

    def test_balance(self):
        folder = Path(self.get_temp_dir()) / "balance"
        variants = ["importance 0, load 0", "importance 0.1, load 0.1"]
        output, rows = self.run_study(folder, "balance", "--networks", "MoE-4", "--variants", *variants)
        self.assertIn("| MoE-4 | importance 0.1, load 0.1 | 16 | 1 | 0 |", output)
        self.assertLen(rows, 2)
        self.assertGreater((folder / "balance_MoE-4.png").stat().st_size, 10_000)

    def write_text(self):
        data = Path(self.get_temp_dir()) / "data"
        data.mkdir()
        for part, lines in (("train", 200), ("valid", 20), ("test", 20)):
            words = self.rng.choice(["the", "cat", "dog", "sat", "ran", "on", "a", "mat"], (lines, 12))
            (data / f"{part}.txt").write_text("".join(" ".join(line) + "\n" for line in words))
        return data

    def test_budgets(self):
        folder = Path(self.get_temp_dir()) / "budgets"
        _, rows = self.run_study(folder, "budgets", "--networks", "MoE-1-Wide")
        self.assertEqual([row["width"] for row in rows], ["8", "16", "32"])
        ops = [int(row["ops_per_timestep"]) for row in rows]
        self.assertEqual(ops, [ops[0], 4 * ops[0], 16 * ops[0]])
        self.assertGreater((folder / "perplexity_by_ops.png").stat().st_size, 10_000)

    def test_low_resource(self):
        data, folder = self.write_text(), Path(self.get_temp_dir()) / "low_resource"
        arguments = ["low_resource", "--corpus", data, "--words", "11", "--networks", "MoE-4"]
        variants = ["", "shared expert", "weight decay 0.1", "both dropouts"]
        _, rows = self.run_study(folder, *arguments, "--fractions", "0.1", "--variants", *variants)
        self.assertLen(rows, 4)
        costs = {row["ops_per_timestep"] for row in rows}
        self.assertLen(costs, 1)  # whatever is done against overfitting
        self.assertEqual({row["fraction"] for row in rows}, {"0.1"})
        self.assertGreater((folder / "low_resource.png").stat().st_size, 10_000)

    def test_ablations_on_text(self):
        data, folder = self.write_text(), Path(self.get_temp_dir()) / "ablations"
        variants = ["no noise", "strictly balanced", "no sigmoid"]
        arguments = ["--corpus", data, "--words", "11", "--networks", "MoE-4", "--variants", *variants]
        _, rows = self.run_study(folder, "ablations", *arguments)
        output, again = self.run_study(folder, "ablations", *arguments)
        self.assertEqual(output.count("done before"), 3)
        self.assertEqual(again, rows)
        self.assertIn("| MoE-4 | strictly balanced | 16 | 1 | 0 |", output)
        self.assertCountEqual([row["variant"] for row in rows], variants)
        self.assertEqual({row["floor"] for row in rows}, {""})
        self.assertGreater((folder / "ablations.png").stat().st_size, 10_000)

    def test_gates(self):
        folder = Path(self.get_temp_dir()) / "gates"
        variants = ["Sinkhorn, 2 iterations", "Switch"]
        output, rows = self.run_study(folder, "gates", "--networks", "MoE-4", "--variants", *variants)
        self.assertIn("| MoE-4 | Sinkhorn, 2 iterations | 16 | 1 | 0 |", output)
        # One expert of four times the width instead of four.
        experts = [int(row["parameters"]) - 8 * 16 * 16 * 2 for row in rows]
        self.assertEqual(experts, [4 * 2 * 16 * 32 + 16 * 4, 2 * 16 * 128 + 16])
        for row in rows:
            self.assertBetween(float(row["dropped_at_1.25"]), 0, 0.75)  # an expert alone keeps at least its share
        self.assertGreater((folder / "gates.png").stat().st_size, 10_000)

    def test_wrong_arguments_are_explained(self):
        for arguments, message in (
            (["low_resource"], "The generated language never ends. Pass low_resource a text"),
            (["family", "--facts", "1"], "fact_probability must be a number from 0 to under 1. Received"),
            (["balance", "--networks", "MoE-1-Wide"], "about mixtures of experts. Received: --networks with"),
            (
                ["low_resource", "--corpus", self.write_text(), "--variants", "both dropouts"],
                "to the plain networks. Received: --variants ['both dropouts']. Add ''",
            ),
            (["ablations", "--variants", "none"], "--variants must be some of ['as in the paper'"),
            (["low_resource", "--fractions", "0.5", "2"], "--fractions: must be over 0 and at most 1, not 2.0"),
            (["family", "--dropout", "2"], "--dropout: must be from 0 to under 1, not 2.0"),
        ):
            outcome = run(PAPER, *arguments, "--output", self.get_temp_dir())
            self.assertNotEqual(outcome.returncode, 0)
            self.assertIn(message, outcome.stderr)
        data = Path(self.get_temp_dir()) / "data"
        outcome = run(PAPER, "low_resource", "--corpus", data, "--words", 11, "--output", data / "test.txt")
        self.assertIn("examples/paper: [Errno 17] File exists: '", outcome.stderr)

    def test_another_text_of_the_same_name_is_another_corpus(self):
        main, table = load(PAPER / "__main__.py"), load(PAPER / "table.py")
        data = self.write_text()
        options = main.parse_arguments(["low_resource", "--corpus", str(data), "--words", "11", "--smoke"])
        run_, before = main.choose(options)[0], main.load(options)
        with (data / "valid.txt").open("a") as file:
            file.write("the mat sat on the cat\n")
        after = main.load(options)
        self.assertEqual(before.name, after.name)
        file = Path(self.get_temp_dir()) / "another.csv"
        table.append(file, main.key_of(run_, before, options))
        for text, is_done in ((before, True), (after, False)):
            self.assertEqual(table.is_done(main.key_of(run_, text, options), table.read(file)), is_done)

    def test_rows_without_a_digest_hold_for_every_text(self):
        table = load(PAPER / "table.py")
        rows = [row for row in table.read(PAPER / "reference" / "table.csv") if row["corpus"].startswith("wikitext2")]
        self.assertTrue(table.is_done({**rows[0], table.TEXT: "0123456789ab"}, rows))
