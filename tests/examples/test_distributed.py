"""The example on a mesh as a user runs it."""

from pathlib import Path

from tests.base import TestCase
from tests.examples.program import EXAMPLES, run
from tests.processes import run_python

EXAMPLE = EXAMPLES / "distributed.py"


class MeshExampleTest(TestCase):
    def text(self):
        folder = Path(self.get_temp_dir()) / self._testMethodName
        folder.mkdir(parents=True)
        for part, lines in (("train", 400), ("valid", 40), ("test", 40)):
            words = self.rng.choice(["the", "cat", "dog", "sat", "ran", "on", "a", "mat"], (lines, 12))
            (folder / f"{part}.txt").write_text("".join(" ".join(line) + "\n" for line in words))
        return folder

    def test_distributed(self):
        sizes = ["--vocabulary", 11, "--batch", 8, "--steps", 16, "--epochs", 0.3]
        # In a new process, which decides how many devices there are.
        outcome = run_python(EXAMPLE, "--smoke", "--devices", 2, "--data", self.text(), *sizes)
        lines = outcome.stdout.splitlines()
        (kernel,) = (line for line in lines if "moe/experts/hidden_kernel" in line)
        self.assertIn("['expert', None, None]", kernel)
        (exchange,) = (line.split("|") for line in lines if line.startswith("| all-to-all"))
        self.assertEqual(exchange[2], exchange[3], "the model and the program disagree")
        self.assertIn("tokens/s, test perplexity", lines[-1])
        # Eight words, all as likely, and an end of line after twelve.
        self.assertBetween(float(lines[-1].split()[-1]), 5, 12)

    def test_one_device(self):
        outcome = run(EXAMPLE, "--devices", 1)
        self.assertEqual(outcome.returncode, 2)
        self.assertIn("--devices must be at least 2", outcome.stderr)

    def test_a_batch_that_does_not_divide(self):
        # The devices that this process has.
        outcome = run(EXAMPLE, "--smoke", "--devices", 8, "--batch", 3, "--data", self.text())
        self.assertEqual(outcome.returncode, 1)
        self.assertIn("--batch must divide evenly over 8 devices, not 3", outcome.stderr)
