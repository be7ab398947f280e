import itertools

import keras
import numpy as np

from tests.base import TestCase
from tf_moe.analysis import CoActivation, measure_co_activation
from tf_moe.analysis.co_activation import CoActivationTally, quasi_independent
from tf_moe.analysis.observer import Decisions
from tf_moe.layers import SparseMoE


class CoActivationTest(TestCase):
    def test_by_hand(self):
        """Four positions, two choices each. Experts 0 and 1 are together twice; one position has one expert, and the
        last is masked."""
        index = np.array([[0, 1], [1, 0], [2, 3], [3, 0]])
        gate = np.array([[0.6, 0.4], [0.5, 0.5], [1.0, 0.0], [0.0, 0.0]], "float32")
        layer = SparseMoE(4, 3, k=2)
        tally = CoActivationTally(layer)
        tally.add(Decisions(layer, index, gate, 0, [4]), None)
        found = tally.result()
        self.assertAllEqual(found.counts, [[2, 2, 0, 0], [2, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
        self.assertAllClose(found.expected[0, 1:], [2, 0, 0])  # who has pairs at all has them with one another
        self.assertAllEqual(np.isnan(found.expected.diagonal()), [True] * 4)

    def test_against_a_loop_in_a_model(self):
        layer = SparseMoE(6, 3, k=3, name="moe")
        model = keras.Sequential([keras.Input((4,)), layer])
        layer.gate.kernel.assign(self.normal(4, 6))
        batches = [self.normal(8, 4), self.normal(5, 4)]
        expected = np.zeros((6, 6))
        for batch in batches:
            for row in layer.route(batch).gates.numpy():
                for i, j in itertools.product(np.flatnonzero(row), repeat=2):
                    expected[i, j] += 1
        self.assertAllEqual(measure_co_activation(model, batches)["moe"].counts, expected)

    def test_chance(self):
        """Two experts without regard to one another, but that they are two: ratios near 1, under uneven loads too."""
        index = self.rng.choice(6, (300_000, 2), p=np.array([4, 2, 1, 1, 1, 1]) / 10)
        index = index[index[:, 0] != index[:, 1]]
        tally = CoActivationTally(SparseMoE(6, 3, k=2))
        tally.add(Decisions(None, index, np.ones(index.shape), 0, [len(index)]), None)
        found = tally.result()
        self.assertAllInRange(found.ratio[~np.eye(6, dtype=bool)], 0.93, 1.07)
        # The product of the loads is no measure of chance here: no pair would reach it.
        load = found.counts.diagonal()
        product = np.outer(load, load) / len(index)
        self.assertAllLess((found.counts / product)[~np.eye(6, dtype=bool)], 0.9)

    def test_quasi_independent_has_the_sums(self):
        counts = self.rng.integers(0, 50, (7, 7))
        counts += counts.T
        expected = quasi_independent(counts)
        self.assertAllClose(np.nansum(expected, axis=1), counts.sum(axis=1) - counts.diagonal(), rtol=1e-5)
        self.assertAllClose(expected[0, 1] * expected[2, 3], expected[0, 2] * expected[1, 3], rtol=1e-6)

    def test_pairs(self):
        expected = np.full((3, 3), 4.0)
        np.fill_diagonal(expected, np.nan)
        pairs = CoActivation(np.array([[9, 8, 1], [8, 9, 5], [1, 5, 6]]), expected).pairs()
        self.assertEqual([(p["expert"], p["other"], p["together"], p["ratio"]) for p in pairs],
                         [(0, 1, 8, 2.0), (1, 2, 5, 1.25)])  # fmt: skip
        self.assertLen(CoActivation(np.array([[9, 8, 1], [8, 9, 5], [1, 5, 6]]), expected).pairs(1), 1)

    def test_too_many(self):
        with self.assertRaisesRegex(ValueError, "up to 4096 experts. Received: 'many' with 5000"):
            CoActivationTally(SparseMoE(5000, 3, name="many"))
