"""The example as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

from absl.testing import parameterized

from tests.base import TestCase

EXAMPLE = Path(__file__).parents[2] / "examples" / "language_model.py"


class LanguageModelExampleTest(TestCase):
    def run_example(self, *arguments):
        return subprocess.run(
            [sys.executable, EXAMPLE, "--output", self.get_temp_dir(), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    def test_smoke(self):
        folder = Path(self.get_temp_dir())
        data = folder / "data"
        data.mkdir()
        for part, lines in (("train", 400), ("valid", 40), ("test", 40)):
            words = self.rng.choice(["the", "cat", "dog", "sat", "ran", "on", "a", "mat"], (lines, 12))
            (data / f"{part}.txt").write_text("".join(" ".join(line) + "\n" for line in words))
        run = self.run_example("--smoke", "--data", data, "--vocabulary", "11", "--experts", "4x2", "--batch", "4")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("| moe-4x2 |", run.stdout)
        self.assertIn("| dense |", run.stdout)
        for name in ("perplexity.png", "load.png", "moe-4x2.keras", "dense.keras", "vocabulary.txt", "table.md"):
            self.assertGreater((folder / name).stat().st_size, 0)
        history = json.loads((folder / "history.json").read_text())
        self.assertLess(history["moe-4x2"]["val_perplexity"][-1], history["moe-4x2"]["val_perplexity"][0])

    @parameterized.named_parameters(
        ("missing_directory", ["--data", "no/such/place"], "no/such/place"),
        ("k_above_experts", ["--experts", "4", "--k", "5"], "k=5"),
        ("levels_do_not_match", ["--experts", "4x4", "--k", "3"], "k=3"),
        ("not_a_number", ["--experts", "many"], "many"),
        ("zero", ["--width", "0"], "at least 1"),
        ("gate", ["--gate", "top_k"], "top_k"),
    )
    def test_mistakes_get_a_message_and_no_traceback(self, arguments, received):
        run = self.run_example("--smoke", *arguments)
        self.assertNotEqual(run.returncode, 0)
        self.assertIn(received, run.stderr)
        self.assertNotIn("Traceback", run.stderr)

    @parameterized.named_parameters(
        ("empty", {}, "No files"),
        ("not_text", {"train.txt": b"\xff\xfe\x00", "valid.txt": b"a\n", "test.txt": b"a\n"}, "line 1"),
        ("small", {"train.txt": b"a b\n", "valid.txt": b"a\n", "test.txt": b"a\n"}, "only 2 distinct tokens"),
    )
    def test_unusable_data_gets_a_message_and_no_traceback(self, files, received):
        data = Path(self.get_temp_dir()) / "data"
        data.mkdir(exist_ok=True)
        for name, content in files.items():
            (data / name).write_bytes(content)
        run = self.run_example("--data", data)
        self.assertNotEqual(run.returncode, 0)
        self.assertIn(received, run.stderr)
        self.assertNotIn("Traceback", run.stderr)
