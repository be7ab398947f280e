import itertools

import numpy as np

from tests.base import TestCase
from tf_moe.analysis.matching import best_matching


class MatchingTest(TestCase):
    def test_against_all_permutations(self):
        for _ in range(200):
            n = self.rng.integers(1, 7)
            # Few different numbers, so that there are ties; negative ones too.
            gain = self.rng.integers(-3, 4, (n, n)) if self.rng.random() < 0.5 else self.normal(n, n)
            found = best_matching(gain)
            self.assertAllEqual(np.sort(found), np.arange(n))
            best = max(gain[np.arange(n), list(p)].sum() for p in itertools.permutations(range(n)))
            self.assertAllClose(gain[np.arange(n), found].sum(), best)

    def test_finds_a_permutation(self):
        hidden = self.rng.permutation(60)
        gain = self.rng.random((60, 60))
        gain[np.arange(60), hidden] += 1
        self.assertAllEqual(best_matching(gain), hidden)

    def test_wrong(self):
        for gain in (np.zeros((2, 3)), np.zeros(3), np.full((2, 2), np.nan)):
            with self.assertRaisesRegex(ValueError, "square matrix of finite numbers. Received: gain=array"):
                best_matching(gain)
