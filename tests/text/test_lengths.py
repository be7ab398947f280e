import numpy as np

from tests.base import TestCase
from tf_moe.text.lengths import rising_lengths


class RisingLengthsTest(TestCase):
    def test_lengths(self):
        self.assertEqual(rising_lengths("sizes", np.array([1, 4])), [1, 4])
        for lengths, pattern in (
            ([], r"sizes must be rising .*sizes=\[\]"),
            ([4, 4], r"sizes=\[4, 4\]"),
            ([4, 2], r"sizes=\[4, 2\]"),
            ([0, 2], r"sizes\[0\]=0"),
            ([1, 2.5], r"sizes\[1\]=2.5"),
        ):
            with self.assertRaisesRegex(ValueError, pattern):
                rising_lengths("sizes", lengths)
