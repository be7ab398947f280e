import itertools
from unittest import mock

import numpy as np

import tf_moe.analysis.information as information_module
from tests.base import TestCase
from tf_moe.analysis.information import (
    LabelCounter,
    _hypergeometric,
    information,
    information_by_chance,
    most_information,
    standard_error,
)


def counted(expert, label, groups=8, rows=None, chosen=None):
    """Counts of experts (T, K) and labels (T,) in one batch."""
    counter = LabelCounter(groups)
    chosen = np.ones(expert.shape, bool) if chosen is None else chosen
    rows = len(label) if rows is None else rows
    counter.add(expert, chosen, label, np.repeat(np.arange(rows), len(label) // max(rows, 1)))
    return counter.result()[0], counter


def slow_information(expert, label):
    """From the joint distribution as a dense matrix, in float64."""
    k = expert.shape[1]
    joint = np.zeros((expert.max() + 1, label.max() + 1))
    np.add.at(joint, (expert.ravel(), np.repeat(label, k)), 1 / expert.size)
    product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return float(sum(p * np.log(p / q) for p, q in zip(joint.ravel(), product.ravel(), strict=True) if p))


class InformationTest(TestCase):
    def random(self, positions=300, experts=6, labels=9, k=2, strength=1.0):
        label = self.rng.integers(0, labels, positions)
        logits = strength * self.normal(labels, experts)[label] + self.rng.gumbel(size=(positions, experts))
        return np.argsort(-logits, axis=1)[:, :k], label

    def test_perfect(self):
        """Every label has its experts: log of the number of labels, by one expert each or by two."""
        label = np.repeat(np.arange(5), 20)
        for expert in (label[:, None] + 3, np.stack([2 * label, 2 * label + 1], 1)):
            counts, counter = counted(expert, label)
            self.assertAllClose(information(counts), np.log(5))
            self.assertAllClose(most_information(counts, counter.choice_entropy), np.log(5))

    def test_none(self):
        """Every expert has all labels alike."""
        label = np.tile(np.arange(4), 30)
        counts, _ = counted(np.repeat(np.arange(6), 20)[:, None], label)
        self.assertAllClose(information(counts), 0.0)

    def test_by_hand(self):
        """Three positions of label 0 with experts 0, 0, 1; one of label 1 with expert 1."""
        counts, _ = counted(np.array([[0], [0], [1], [1]]), np.array([0, 0, 0, 1]))
        self.assertAllClose(information(counts), 0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3) + 0.25 * np.log(2))

    def test_against_a_dense_matrix_in_several_batches(self):
        expert, label = self.random()
        counter = LabelCounter(4)
        counter._pairs._most = 200  # so that it is merged on the way
        for start in range(0, 300, 50):
            part = slice(start, start + 50)
            counter.add(expert[part], np.ones((50, 2), bool), 1000 + 7 * label[part], np.repeat(np.arange(10), 5))
        counts, values = counter.result()
        self.assertAllClose(information(counts), slow_information(expert, label), rtol=1e-9)
        self.assertAllEqual(values, 1000 + 7 * np.unique(label))
        self.assertAllEqual(counts.positions.sum(axis=0), [75, 75, 75, 75])
        self.assertAllEqual(counts.load(), np.bincount(expert.ravel()))

    def test_what_is_left_out(self):
        """Choices that are none, positions without an expert, and negative labels."""
        expert, label = self.random(positions=40)
        chosen = self.rng.random((40, 2)) < 0.7
        label[::7] = -1
        kept = [t for t in range(40) if chosen[t].any() and label[t] >= 0]
        counts, _ = counted(expert, label, chosen=chosen)
        share = {n: sum(label[t] == n for t in kept) / len(kept) for n in label}
        pairs = [(e, label[t]) for t in kept for e in expert[t][chosen[t]]]
        terms = []
        for e, n in pairs:
            of_expert = [other for one, other in pairs if one == e]
            terms.append(np.log(of_expert.count(n) / len(of_expert) / share[n]))
        self.assertAllClose(information(counts), np.mean(terms), rtol=1e-9)

    def test_baseline_is_the_mean_over_all_permutations(self):
        """By all 5040 of seven positions, with a label that every expert must have."""
        expert, label = (
            np.array([[0, 1], [0, 2], [0, 1], [0, 3], [0, 2], [0, 1], [2, 3]]),
            np.array([0, 0, 0, 0, 0, 1, 2]),
        )
        counts, _ = counted(expert, label)
        permuted = [slow_information(expert, np.array(one)) for one in itertools.permutations(label)]
        self.assertAllClose(information_by_chance(counts), np.mean(permuted), rtol=1e-9)

    def test_baseline_against_drawn_permutations(self):
        expert, label = self.random(positions=400, labels=30, strength=2.0)
        label = np.where(self.rng.random(400) < 0.4, 0, label)  # one frequent label
        counts, _ = counted(expert, label)
        permuted = [slow_information(expert, self.rng.permutation(label)) for _ in range(300)]
        error = np.std(permuted) / 300**0.5
        baseline = information_by_chance(counts)
        with mock.patch.object(information_module, "_CELLS", 100):  # in many pieces
            self.assertAllClose(information_by_chance(counts), baseline, rtol=1e-12)
        self.assertAllClose(baseline, np.mean(permuted), atol=5 * error, rtol=0)
        self.assertGreater(baseline, 50 * error)  # so that the line above says something

    def test_hypergeometric_where_numbers_are_large(self):
        """A million positions: mean and variance are the textbook's."""
        drawn = np.array([1, 1000, 400_000, 999_999, 1_000_000])
        for n in (1, 50_000, 700_000):
            count, probability = _hypergeometric(1_000_000, n, drawn)
            mean = (count * probability).sum(axis=1)
            share = n / 1e6
            self.assertAllClose(mean, drawn * share, rtol=1e-9)
            variance = ((count - mean[:, None]) ** 2 * probability).sum(axis=1)
            self.assertAllClose(variance, drawn * share * (1 - share) * (1e6 - drawn) / 999_999, rtol=1e-6)

    def test_baseline_leaves_nothing_of_independence(self):
        excess = []
        for _ in range(20):
            expert, label = self.random(positions=200, labels=40, strength=0.0)
            counts, _ = counted(expert, label)
            excess.append(information(counts) - information_by_chance(counts))
            self.assertGreater(information(counts), 0.1)  # which is all bias
        self.assertAllClose(np.mean(excess), 0.0, atol=0.02)

    def test_error_covers_rows_that_belong_together(self):
        """Positions of a row share their label, so that there are 128 samples, not 1024; of 60 intervals some miss."""
        rows, time, draw = 128, 8, np.array([[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]])
        truth = float((draw / 3 * np.log(draw * 3)).sum())
        hits, narrow = 0, 0
        for _ in range(60):
            label = np.repeat(self.rng.integers(0, 3, rows), time)
            # The row's expert is drawn once and kept by all of its positions.
            expert = np.repeat((self.rng.random(rows)[:, None] > draw[label[::time]].cumsum(1)).sum(1), time)[:, None]
            for groups_of, name in ((rows, "hits"), (rows * time, "narrow")):
                counts, _ = counted(expert, label, groups=64, rows=groups_of)
                unbiased = information(counts) - 4 / (2 * rows)  # Miller and Madow's: (3 - 1)^2 / 2 n
                hit = abs(unbiased - truth) < 1.96 * standard_error(counts, 60, self.rng)
                hits, narrow = hits + (hit and name == "hits"), narrow + (hit and name == "narrow")
        self.assertGreaterEqual(hits, 44)
        self.assertLess(narrow, hits)  # rows taken for independent positions

    def test_error_of_one_row(self):
        counts, _ = counted(np.array([[0], [1]]), np.array([0, 1]), rows=1)
        self.assertTrue(np.isnan(standard_error(counts, 100, self.rng)))

    def test_empty(self):
        counts, counter = counted(np.zeros((0, 2), int), np.zeros(0, int))
        self.assertEqual(information(counts), 0)
        self.assertEqual(information_by_chance(counts), 0)
        self.assertEqual(most_information(counts, counter.choice_entropy), 0)
