import itertools

import numpy as np

from tests.base import TestCase
from tf_moe.conversion.alike import group_alike


def cost(weights, loads, groups):
    """Sum over experts of load times squared distance to the mean of the group, in float64."""
    total = 0.0
    for group in groups:
        rows = np.concatenate([w[group].reshape(len(group), -1) for w in weights], axis=1).astype("float64")
        mean = np.average(rows, axis=0, weights=loads[group])
        total += (loads[group] * ((rows - mean) ** 2).sum(axis=1)).sum()
    return total


class AlikeTest(TestCase):
    def test_copies_find_one_another(self):
        """Three kinds of expert far from zero, and small differences within each."""
        kind = np.array([2, 0, 1, 0, 2, 2, 1])
        weights = [1000 + self.normal(3, 4, 5)[kind], self.normal(3, 6)[kind]]
        weights = [(w + 1e-3 * self.normal(*w.shape)).astype("float32") for w in weights]
        groups = group_alike(weights, 1 + self.rng.random(7), 3)
        self.assertEqual(groups, [[0, 4, 5], [1, 3], [2, 6]])

    def test_each_step_is_the_cheapest(self):
        """By a search over all pairs, with costs computed anew from the weights."""
        weights, loads = [self.normal(6, 3, 4), self.normal(6, 5)], np.exp(self.normal(6)).astype("float64")
        groups = [[e] for e in range(6)]
        while len(groups) > 1:
            joined = []
            for a, b in itertools.combinations(range(len(groups)), 2):
                rest = [g for n, g in enumerate(groups) if n not in (a, b)]
                joined.append(sorted([*rest, sorted(groups[a] + groups[b])]))
            groups = min(joined, key=lambda g: cost(weights, loads, g))
            self.assertEqual(group_alike(weights, loads, len(groups)), groups)

    def test_what_is_not_used_is_joined_first(self):
        weights = [np.array([[0.0], [1.0], [1.5], [10.0]])]
        self.assertEqual(group_alike(weights, np.array([5.0, 5, 5, 5]), 3), [[0], [1, 2], [3]])
        # The last is far from all, but nothing goes to it; it joins what is nearest to it.
        self.assertEqual(group_alike(weights, np.array([5.0, 5, 5, 0]), 3), [[0], [1], [2, 3]])
        self.assertEqual(group_alike(weights, np.array([5.0, 5, 5, 0]), 1), [[0, 1, 2, 3]])
        self.assertEqual(group_alike(weights, np.ones(4), 4), [[0], [1], [2], [3]])
