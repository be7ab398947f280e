import keras
import numpy as np

from tests.base import TestCase
from tf_moe.analysis import measure_stability
from tf_moe.analysis.observer import Decisions, Observer
from tf_moe.analysis.stability import StabilityTally
from tf_moe.layers import SparseMoE


class StabilityTest(TestCase):
    def model(self, experts=6):
        moe = SparseMoE(experts, 3, k=2)
        return keras.Sequential([keras.Input((None, 5)), moe]), moe

    def test_the_same_gate_under_other_numbers(self):
        """Of two models with one gate, the second has its experts in another order."""
        (model, moe), (other, other_moe) = self.model(), self.model()
        kernel, order = self.normal(5, 6), self.rng.permutation(6)
        moe.gate.kernel.assign(kernel)
        other_moe.gate.kernel.assign(kernel[:, order])
        batches = [self.normal(30, 5, 5), self.normal(30, 5, 5)]
        tally, observer = StabilityTally(6), Observer(model)
        for batch in batches:
            (decisions,) = observer(batch).values()
            tally.add(decisions, decisions, 30)
        same = tally.result(100, 0)
        self.assertEqual((same.positions, same.same_set, same.overlap), (300, 1.0, 1.0))
        self.assertAllEqual(same.matching, np.arange(6))
        (found,) = measure_stability(model, other, batches).values()
        self.assertAllEqual(order[found.matching], np.arange(6))
        self.assertEqual(found.matched_overlap, 1.0)
        self.assertAllClose(found.information[:5], same.information[:5], rtol=1e-6)
        chosen = []
        for layer in (moe, other_moe):
            chosen.append(np.concatenate([layer.route(batch).gates.numpy() > 0 for batch in batches]))
        expected = chosen[0].astype(int).T @ chosen[1].astype(int)
        self.assertAllEqual(found.counts, expected)
        self.assertAllClose(found.same_set, (chosen[0] == chosen[1]).all(axis=1).mean())
        self.assertAllClose(found.overlap, (chosen[0] & chosen[1]).sum() / (2 * 300))
        self.assertEqual(found.figures()["positions"], 300)

    def test_by_hand(self):
        """Four positions: the same experts in another order; one of two the same; masked in both; an expert in the
        second alone."""
        tally = StabilityTally(3)
        first = [[0, 1], [0, 2], [0, 1], [1, 2]]
        second = [[1, 0], [0, 1], [1, 2], [1, 2]]
        gate = np.array([[[0.7, 0.3], [0.6, 0.4], [0, 0], [0, 0]], [[0.7, 0.3], [0.2, 0.8], [0, 0], [1, 0]]])
        both = zip((first, second), gate, strict=True)
        tally.add(*(Decisions(None, np.array(index), g, 0, [4]) for index, g in both), 4)
        found = tally.result(0, 0)
        self.assertEqual(found.positions, 3)
        self.assertAllClose((found.same_set, found.overlap), (1 / 3, 3 / 4.5))
        self.assertAllEqual(found.counts, [[2, 2, 0], [1, 1, 0], [1, 1, 0]])
        self.assertAllClose(found.matched_overlap, 3 / 4.5)
        # Loads 2, 1, 1 and 2, 3, 0: the busiest with the busiest.
        self.assertAllClose(found.chance_overlap, (2 * 3 + 1 * 2 + 1 * 0) / 3 / 4.5)
        self.assertAllEqual(found.information.counts.positions.sum(), 2)  # that have experts in both

    def test_a_layer_that_is_called_twice(self):
        """Rows are resampled with what they have in both calls, here of 1 and of 2 positions."""
        tally, index = StabilityTally(2), np.array([[0], [1], [0], [0], [1], [1]])
        for calls in ([2, 4], [2, 4]):
            one = Decisions(None, index, np.ones(index.shape), 0, calls)
            tally.add(one, one, 2)
        self.assertAllEqual(tally.result(0, 0).information.counts.positions[:, :5], [[3, 0, 3, 0, 0], [0, 3, 0, 3, 0]])

    def test_chance(self):
        tally = StabilityTally(4)
        index = self.rng.choice(4, (2, 20_000, 1), p=[0.4, 0.3, 0.2, 0.1])
        tally.add(*(Decisions(None, one, np.ones(one.shape), 0, [20_000]) for one in index), 20_000)
        found = tally.result(0, 0)
        self.assertAllClose(found.matched_overlap, found.chance_overlap, atol=0.02)
        self.assertAllClose(found.chance_overlap, 0.3, atol=0.02)  # sum of the squares
        self.assertAllClose(found.information.share, 0.0, atol=0.01)

    def test_unlike_models(self):
        (model, _), (more, _) = self.model(), self.model(experts=7)
        with self.assertRaisesRegex(ValueError, r"layers of \[6\] and of \[7\] experts"):
            measure_stability(model, more, [self.normal(2, 3, 5)])
        with self.assertRaisesRegex(ValueError, "without any"):
            measure_stability(model, model, [])
