"""The example as a user runs it, on digits and on images of its own; its arithmetic, and what it refuses."""

import re
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.examples.program import EXAMPLES, load, run

EXAMPLE = EXAMPLES / "images.py"


def table_rows(text, *first_cells):
    """The cells of the rows of Markdown tables that begin with these."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0] in first_cells]


class ImagesExampleTest(TestCase):
    def folder(self, name="data"):
        path = Path(self.get_temp_dir()) / self._testMethodName / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def write_images(self, name, shades, number=10):
        """Grey images, of one shade for each class and of another size each."""
        for label, shade in shades.items():
            for i in range(number):
                height, width = self.rng.integers(5, 12, 2)
                noisy = np.clip(shade + self.rng.integers(-20, 20, (height, width, 1)), 0, 255).astype("uint8")
                path = self.folder(f"{name}/{label}") / f"{i}.png"
                path.write_bytes(tf.io.encode_png(noisy).numpy())
        return self.folder(name)

    def test_digits(self):
        out = run(EXAMPLE, "--smoke")
        self.assertEqual(out.returncode, 0, out.stderr)
        moe, dense, wide = table_rows(out.stdout, "moe", "dense", "wide")
        self.assertEqual(moe[2], dense[2])  # multiply-adds
        # 8x8 positions of 3x3x1x4, 4x4 of 3x3x4x8, of the mixture's 2 of 8 experts 8x8x8 and its gate's 2 matrices, 10
        # classes; the wide one has 64 hidden units.
        self.assertEqual(moe[2], f"{64 * 36 + 16 * (288 + 2 * 128 + 128) + 80:,}")
        self.assertEqual(wide[2], f"{64 * 36 + 16 * (288 + 1024) + 80:,}")
        self.assertRegex(out.stdout, r"One seed does not tell .*: [+-]\d+\.\d\d points")
        experts = table_rows(out.stdout, *map(str, range(8)))
        self.assertLen(experts, 8)
        self.assertAllClose(sum(float(row[1].rstrip("%")) for row in experts), 100, atol=0.5)

    def test_folders_of_images_are_learned(self):
        images = load(EXAMPLE)
        data = images.load_folders(self.write_images("data", {"black": 40, "white": 210}), 8)
        self.assertEqual(data.classes, ["black", "white"])
        self.assertEqual(data.train.inputs.shape, (12, 8, 8, 3))
        mean_of_class = [data.train.inputs[data.train.labels == number].mean() for number in range(2)]
        self.assertAllClose(mean_of_class, [40 / 255, 210 / 255], atol=0.02)
        sizes = ["--channels", "8", "16", "--batch", "4", "--epochs", "20", "--learning-rate", "0.01"]
        options = images.parse_arguments(sizes)
        trained = images.train(images.build(images.middles(16, options)["moe"](), data, options), data, options)
        self.assertAllEqual(trained.validation.right, [True] * 4)
        self.assertAllEqual(trained.test.right, [True] * 4)
        self.assertAllEqual(trained.test.load.sum(axis=1), [2 * 4 * 4] * 4)

    def test_parts_are_disjoint_and_have_every_class(self):
        images = load(EXAMPLE)
        labels = self.rng.permutation(np.repeat(np.arange(3), [3, 10, 57]))
        data = images.split(np.arange(70), labels, ["a", "b", "c"])
        again = images.split(np.arange(70), labels, ["a", "b", "c"])
        for part, same, sizes in zip(data[1:], again[1:], ([1, 6, 35], [1, 2, 11], [1, 2, 11]), strict=True):
            self.assertAllEqual(part.labels, labels[part.inputs])
            self.assertAllEqual(np.bincount(part.labels), sizes)
            self.assertAllEqual(part.inputs, same.inputs)
        self.assertCountEqual(np.concatenate([part.inputs for part in data[1:]]), range(70))

    def test_verdict(self):
        images = load(EXAMPLE)

        def runs(*right):
            answers = [images.Answers(np.array(row, bool), None) for row in right]
            return [images.Run(None, None, answer) for answer in answers]

        worse, better = [[0] * 50 + [1] * 50, [1] * 50 + [0] * 50], [[0] * 10 + [1] * 90, [1] * 90 + [0] * 10]
        self.assertStartsWith(images.verdict(runs(*better), runs(*worse)), "The mixture beats its dense twin: ")
        self.assertStartsWith(images.verdict(runs(*worse), runs(*better)), "The mixture loses to its dense twin: ")
        # One seed 2 of 4 ahead, one 1: 3/8 on average, and over seeds 1/8. Over inputs of (1, 1/2, 0, 0) it is
        # sqrt((25 + 1 + 9 + 9) / 64 / 3 / 4), which is larger.
        few = images.verdict(runs([1, 1, 0, 0], [1, 0, 0, 0]), runs([0] * 4, [0] * 4))
        self.assertStartsWith(few, "The mixture neither beats its dense twin nor loses to it: ")
        self.assertIn("+37.50 points, standard error 23.94 ", few)

    def assertStartsWith(self, text, start):  # noqa: N802
        self.assertEqual(text[: len(start)], start)

    def test_what_experts_are_for(self):
        # Inputs 0 and 1 are cats, 2 is a dog. Expert 0 has 3 of 4 positions of the cats and 1 of 4 of the dog's, in all
        # 7 of 12; expert 1 the others; expert 2 none.
        load_of = np.array([[3.0, 1, 0], [3, 1, 0], [1, 3, 0]])
        table = load(EXAMPLE).show_experts(load_of, np.array([0, 0, 1]), ["cat", "dog"], "class")
        self.assertEqual(
            table_rows(table, "0", "1", "2"),
            [["0", "58.3%", "cat (x 1.3)"], ["1", "41.7%", "dog (x 1.8)"], ["2", "0.0%", ""]],
        )

    def test_mistakes_get_a_message_and_no_traceback(self):
        broken = self.write_images("broken", {"a": 10, "b": 200}, number=3)
        (broken / "b" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
        lonely = self.write_images("lonely", {"only": 10}, number=3)
        self.folder("empty/a")
        self.folder("empty/b")
        few = self.write_images("few", {"a": 10, "b": 200}, number=2)
        cases = (
            (["--data", "no/such/place"], "No such directory: 'no/such/place'"),
            (["--data", lonely], r"a folder for each class, two or more.*\['only'\]"),
            (["--data", self.folder("empty")], "No .*images found in directory"),
            (["--data", few], "Each class needs 3 examples or more.*Received: 2 of 'a'"),
            (["--data", broken], r"No image that can be read: .*/b/1.png"),
            (["--experts", 4, "--k", 5], "k=5"),
            (["--hidden", 0], "must be at least 1, not 0"),
        )
        for arguments, pattern in cases:
            out = run(EXAMPLE, "--smoke", *arguments)
            self.assertNotEqual(out.returncode, 0)
            self.assertTrue(re.search(pattern, out.stderr), out.stderr)

    def test_without_scikit_learn(self):
        with mock.patch.dict(sys.modules, {"sklearn": None}):
            out = run(EXAMPLE, "--smoke")
        self.assertEqual(out.returncode, 1)
        self.assertIn("pip install 'tf_moe[images]', or pass --data", out.stderr)
