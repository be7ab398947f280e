"""The example as a user runs it, on digits and on images of its own; its arithmetic, and what it refuses."""

import re
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.examples.program import EXAMPLES, load, run, table_rows

EXAMPLE = EXAMPLES / "images.py"


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
        images, comparing = load(EXAMPLE), load(EXAMPLES / "comparing.py")
        data = images.load_folders(self.write_images("data", {"black": 40, "white": 210}), 8)
        self.assertEqual(data.classes, ["black", "white"])
        self.assertEqual(data.train.inputs.shape, (12, 8, 8, 3))
        mean_of_class = [data.train.inputs[data.train.labels == number].mean() for number in range(2)]
        self.assertAllClose(mean_of_class, [40 / 255, 210 / 255], atol=0.02)
        sizes = ["--channels", "8", "16", "--batch", "4", "--epochs", "20", "--learning-rate", "0.01"]
        options = images.parse_arguments(sizes)
        network = images.build(comparing.middles(16, options)["moe"](), data, options)
        trained = comparing.train(network, data, options)
        self.assertAllEqual(trained.validation.right, [True] * 4)
        self.assertAllEqual(trained.test.right, [True] * 4)
        self.assertAllEqual(trained.test.load.sum(axis=1), [2 * 4 * 4] * 4)

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
