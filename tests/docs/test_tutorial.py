import contextlib
import re

import numpy as np

from tests.base import TestCase
from tests.docs.tutorial import TUTORIAL, run_steps, steps
from tests.text.files import new_folder

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
TRAINED = {1, 4, 8, 10}  # steps whose numbers come of a training, and differ from machine to machine
CLOSE = {1, 4, 10}  # those of them that differ little


class TutorialTest(TestCase):
    """The blocks of the tutorial run as they stand, and print what stands there."""

    def test_steps(self):
        blocks, expected = zip(*steps(TUTORIAL.read_text(encoding="utf-8")), strict=True)
        self.assertLen(blocks, 10)
        with contextlib.chdir(new_folder(self)):
            printed = run_steps(blocks)
        for number, (ours, theirs) in enumerate(zip(printed, expected, strict=True), 1):
            with self.subTest(step=number):
                if number in TRAINED:
                    self.assertEqual(_NUMBER.sub("0", ours), _NUMBER.sub("0", theirs))
                else:
                    self.assertEqual(ours, theirs)
                if number in CLOSE:
                    numbers = [np.array(_NUMBER.findall(text), float) for text in (ours, theirs)]
                    self.assertAllClose(*numbers, rtol=0.2, atol=0.1)
