"""The example as a user runs it, started twice: on one device, and then on two from where the first came to."""

import csv
import pathlib

from tests.base import TestCase
from tests.examples.program import EXAMPLES, load, run
from tests.processes import run_python

EXAMPLE = EXAMPLES / "billion_words.py"


class BillionWordsTest(TestCase):
    def text(self, folder):
        """Named as the One Billion Word benchmark has them."""
        training, heldout = folder / "training", folder / "heldout"
        for path in (training, heldout):
            path.mkdir(parents=True)
        names = [*(training / f"news.en-0000{n}-of-00100" for n in (1, 2, 3))]
        for path in [*names, *(heldout / f"news.en.heldout-0000{n}-of-00050" for n in (0, 1))]:
            words = self.rng.choice(["the", "cat", "dog", "sat", "ran", "on", "a", "mat"], (40, 5))
            path.write_text("".join(" ".join(line) + "\n" for line in words))
        return folder

    def test_smoke(self):
        folder = pathlib.Path(self.get_temp_dir(), self._testMethodName)
        data, cache, output = self.text(folder / "data"), folder / "cache", folder / "output"
        always = ("--data", data, "--cache", cache, "--output", output, "--network", "MoE-4", "--vocabulary", 11)
        first = run(EXAMPLE, *always, "--smoke", "--epochs", 1)
        self.assertEqual(first.returncode, 0, first.stderr)
        for line in (
            "counting words",
            "train: 0 of 3 shards",
            "train: 3 of 3 shards",
            # 3 x 40 sentences of 6 tokens, of which one has room in a row of 8.
            "on 1 device(s); 720 tokens, 1 x 11 steps of 8 rows of 8, 25.0% padding",
            "epoch 1: loss",
        ):
            self.assertIn(line, first.stdout)
        shards = {file: file.stat().st_mtime_ns for file in cache.rglob("*.tfrecord")}
        self.assertLen(shards, 5)

        # In a new process, which decides how many devices there are.
        second = run_python(EXAMPLE, *always, "--smoke", "--epochs", 2, "--devices", 2)
        self.assertNotIn("counting words", second.stdout)
        self.assertNotIn("train: 0 of 3 shards", second.stdout)
        self.assertEqual({file: file.stat().st_mtime_ns for file in cache.rglob("*.tfrecord")}, shards)
        self.assertIn("on 2 device(s); 720 tokens, 2 x 11 steps", second.stdout)
        self.assertNotIn("epoch 1:", second.stdout)
        self.assertIn("epoch 2: loss", second.stdout)
        self.assertGreater((output / "MoE-4.keras").stat().st_size, 0)
        with (output / "table.csv").open(newline="") as lines:
            rows = [*csv.DictReader(lines)]
        self.assertEqual([(row["devices"], row["steps"]) for row in rows], [("1", "11"), ("2", "22")])
        perplexities = [float(row["test perplexity"]) for row in rows]
        # Eight words, all as likely, and an end after five, of eleven ids.
        self.assertBetween(perplexities[1], 5, perplexities[0])
        self.assertLess(perplexities[0], 10.5)

        other_steps = run(EXAMPLE, *always, "--smoke", "--steps", 14)
        self.assertEqual(other_steps.returncode, 1)
        self.assertStartsWith(other_steps.stderr.splitlines()[-1], "billion_words.py: The checkpoint in")
        self.assertIn("other settings: steps of an epoch", other_steps.stderr)

        third = run(EXAMPLE, *always[:-1], 10)
        self.assertEqual(third.returncode, 1)
        self.assertIn("vocabulary.txt' has 11 words. Received: --vocabulary 10.", third.stderr)

    def test_more_words_than_the_text_has(self):
        folder = pathlib.Path(self.get_temp_dir(), self._testMethodName)
        outcome = run(EXAMPLE, "--smoke", "--data", self.text(folder / "data"), "--cache", folder / "cache")
        self.assertEqual(outcome.returncode, 1)
        message = "billion_words.py: --vocabulary must be from 4 to 11: three specials, and some of the 8 words"
        self.assertIn(message, outcome.stderr)

    def test_a_tiny_run_has_an_output_of_its_own(self):
        parse = load(EXAMPLE).parse_arguments
        tiny, real = parse(["--data", "x", "--smoke"]), parse(["--data", "x"])
        self.assertNotEqual(tiny.output, real.output)
        self.assertNotEqual(tiny.cache, real.cache)

    def test_a_row_is_written_once(self):
        table = pathlib.Path(self.get_temp_dir(), "table.csv")
        add_row = load(EXAMPLE).add_row
        row = {"network": "MoE-4", "steps": 11, "tokens/s": 100, "test perplexity": "7.50"}
        for change in ({}, {"tokens/s": 0}, {"steps": 22}, {"steps": 22, "tokens/s": 90}):
            add_row(table, {**row, **change})
        with table.open(newline="") as lines:
            rows = [*csv.DictReader(lines)]
        self.assertEqual([(row["steps"], row["tokens/s"]) for row in rows], [("11", "100"), ("22", "100")])
