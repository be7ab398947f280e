import numpy as np

from tests.base import TestCase
from tf_moe.gates.numbers import check_choice, check_fixed, check_levels, check_numbers, plain


class NumbersTest(TestCase):
    def test_check_choice(self):
        check_choice(1, 1)
        check_choice(4, 4)
        with self.assertRaisesRegex(ValueError, r"num_experts must be a positive integer. Received: num_experts=0\."):
            check_choice(0, 1)
        with self.assertRaisesRegex(ValueError, r"k must be a positive integer. Received: k=True\."):
            check_choice(4, True)
        with self.assertRaisesRegex(ValueError, r"Received: k=5, groups=4. Pass k<=4"):
            check_choice(4, 5, "groups")

    def test_check_fixed(self):
        for k in (None, 3, np.int64(3)):
            self.assertEqual(check_fixed(k, 3, "so it is"), 3)
        for k, message in ((2, "k must be 3, or None: so it is. Received: k=2"), (True, "k=True"), (3.0, r"k=3\.0")):
            with self.assertRaisesRegex(ValueError, message):
                check_fixed(k, 3, "so it is")

    def test_pairs_are_two_levels(self):
        for numbers in (((4, 8), (2, 3)), ([4, np.int64(8)], [2, 3])):
            self.assertEqual(check_numbers(*numbers), ((4, 8), (2, 3)))
            self.assertEqual(check_levels(*numbers), ((4, 8), (2, 3)))
        self.assertEqual(check_numbers(4, 2), (4, 2))
        with self.assertRaisesRegex(ValueError, "k must be a pair for two levels"):
            check_numbers((4, 8), 2)
        with self.assertRaisesRegex(ValueError, r"k=9, num_experts\[1\]=8"):
            check_numbers((4, 8), (2, 9))

    def test_plain(self):
        self.assertEqual((plain([4, 8]), plain((4, 8)), plain(4), plain(None)), ((4, 8), (4, 8), 4, None))
