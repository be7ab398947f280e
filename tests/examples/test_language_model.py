"""The example as a user runs it."""

import contextlib
import io
import json
import sys
from pathlib import Path
from unittest import mock

from absl.testing import parameterized

from tests.base import TestCase
from tests.examples.program import EXAMPLES, load, run
from tf_moe.text import Vocabulary

EXAMPLE = EXAMPLES / "language_model.py"


class LanguageModelExampleTest(TestCase):
    def folder(self, name="data"):
        path = Path(self.get_temp_dir()) / self._testMethodName / name
        path.mkdir(parents=True)
        return path

    def complaint(self, *arguments):
        """What it says, when it ends with an error instead of a traceback."""
        stderr = io.StringIO()
        with self.assertRaises(SystemExit) as exit_, contextlib.redirect_stderr(stderr):
            load(EXAMPLE).main([*map(str, arguments), "--output", str(self.folder("output"))])
        self.assertNotIn(exit_.exception.code, (0, None))
        return f"{stderr.getvalue()}{exit_.exception.code}"

    def test_smoke(self):
        data, output = self.folder(), self.folder("output")
        for part, lines in (("train", 400), ("valid", 40), ("test", 40)):
            words = self.rng.choice(["the", "cat", "dog", "sat", "ran", "on", "a", "mat"], (lines, 12))
            (data / f"{part}.txt").write_text("".join(" ".join(line) + "\n" for line in words))
        arguments = ["--smoke", "--data", data, "--vocabulary", "11", "--experts", "4x2", "--batch", "4"]
        outcome = run(EXAMPLE, *arguments, "--output", output)
        self.assertEqual(outcome.returncode, 0, outcome.stderr)
        self.assertIn("| moe-4x2 |", outcome.stdout)
        self.assertIn("| dense |", outcome.stdout)
        for name in ("perplexity.png", "load.png", "moe-4x2.keras", "dense.keras", "vocabulary.txt", "table.md"):
            self.assertGreater((output / name).stat().st_size, 0)
        history = json.loads((output / "history.json").read_text())
        for name in ("moe-4x2", "dense"):
            self.assertLess(history[name]["val_perplexity"][-1], history[name]["val_perplexity"][0])

    def test_a_tiny_run_has_an_output_of_its_own(self):
        parse = load(EXAMPLE).parse_arguments
        self.assertNotEqual(parse(["--smoke"]).output, parse([]).output)
        self.assertEqual(parse(["--smoke", "--output", "here"]).output, Path("here"))

    @parameterized.named_parameters(
        ("missing_directory", ["--data", "no/such/place"], "no/such/place"),
        ("k_above_experts", ["--experts", "4", "--k", "5"], "k=5"),
        ("levels_do_not_match", ["--experts", "4x4", "--k", "3"], "k=3"),
        ("not_a_number", ["--experts", "many"], "many"),
        ("zero", ["--width", "0"], "at least 1"),
        ("dropout", ["--dropout", "1.5"], "1.5"),
        ("endless", ["--epochs", "inf"], "--epochs: must be a number over 0, not inf"),
        ("no_rate", ["--learning-rate", "0"], "--learning-rate: must be a number over 0, not 0.0"),
        ("gate", ["--gate", "top_k"], "top_k"),
        ("gate_not_causal", ["--gate", "expert_choice"], "invalid choice: 'expert_choice'"),
        ("gate_of_ids", ["--gate", "hash"], "invalid choice: 'hash'"),
        ("gate_k", ["--gate", "switch"], "k must be 1"),
    )
    def test_mistakes_get_a_message_and_no_traceback(self, arguments, received):
        self.assertIn(received, self.complaint(*arguments))

    @parameterized.named_parameters(
        ("empty", {}, "No files"),
        ("not_text", {"train.txt": b"a\n\xff\xfe\x00", "valid.txt": b"a\n", "test.txt": b"a\n"}, "line 2"),
        ("small", {"train.txt": b"a b\n", "valid.txt": b"a\n", "test.txt": b"a\n"}, "--vocabulary must be from 4 to 5"),
    )
    def test_unusable_data_gets_a_message_and_no_traceback(self, files, received):
        data = self.folder()
        for name, content in files.items():
            (data / name).write_bytes(content)
        self.assertIn(received, self.complaint("--data", data))

    def small_text(self):
        data = self.folder()
        for part in ("train", "valid", "test"):
            (data / f"{part}.txt").write_text("a b c\n" * 25)
        return data

    def test_a_text_of_less_than_a_batch(self):
        """Many passes over it are as many times nothing."""
        complaint = self.complaint("--data", self.small_text(), "--vocabulary", 6, "--batch", 8, "--epochs", 9)
        self.assertIn("1.0 epochs of 100 tokens are not one batch of 8 windows of 64 steps", complaint)

    def test_an_output_that_is_a_file(self):
        data = self.small_text()
        outcome = run(EXAMPLE, "--data", data, "--vocabulary", 6, "--batch", 1, "--output", data / "test.txt")
        self.assertEqual(outcome.returncode, 1)
        self.assertIn("File exists: '", outcome.stderr)

    def test_what_a_training_needs_is_there_before_it(self):
        """The vocabulary, without which no saved model is of use; the package that draws the plots."""
        data, output = self.small_text(), self.folder("interrupted")
        arguments = ["--data", str(data), "--vocabulary", "6", "--batch", "1", "--steps", "8", "--output", str(output)]
        main = load(EXAMPLE).main
        interrupt = mock.Mock(side_effect=KeyboardInterrupt)
        with mock.patch.dict(main.__globals__, train=interrupt), self.assertRaises(KeyboardInterrupt):
            main(arguments)
        self.assertLen(Vocabulary.load(output / "vocabulary.txt"), 6)
        with mock.patch.dict(sys.modules, {"tf_moe.analysis.plots": None}):
            self.assertIn("pip install 'tf_moe[plots]'", self.complaint(*arguments))
