import keras
import numpy as np

from tests.base import TestCase
from tf_moe.analysis import measure_drops, measure_usage
from tf_moe.analysis.drops import DropTally
from tf_moe.analysis.observer import Decisions
from tf_moe.layers import SparseMoE


class DropsTest(TestCase):
    def model(self, capacity_factor=None):
        return keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                keras.layers.Embedding(20, 6, mask_zero=True),
                SparseMoE(5, 3, k=2, name="first", capacity_factor=capacity_factor),
                SparseMoE((2, 3), 3, k=(1, 2), name="second"),
            ]
        )

    def test_by_hand(self):
        """Six positions of two choices among three experts: 4 rows are an even share. Loads are 6, 3, 1."""
        layer = SparseMoE(3, 4, k=2)
        index = np.array([[0, 1], [0, 1], [0, 1], [0, 2], [0, 1], [0, 2]])
        gate = np.full((6, 2), 0.5, "float32")
        gate[4:, 1] = 0  # no choices
        tally = DropTally(layer, (1.0, 1.25, 0.5, 2.0))
        tally.add(Decisions(layer, index, gate, 0, [6]), None)
        self.assertEqual(tally.result(), {1.0: 0.2, 1.25: 0.1, 0.5: 0.5, 2.0: 0.0})
        index = np.array([[0, 1], [2, 1], [0, 2], [0, 2], [0, 1], [1, 2]])  # 4 each: a batch has room of its own
        tally.add(Decisions(layer, index, np.full((6, 2), 0.5, "float32"), 0, [6]), None)
        self.assertAllClose(tally.result()[1.0], 2 / 22)

    def test_is_what_a_layer_with_that_capacity_drops(self):
        model = self.model()
        model.layers[1].gate.kernel.assign(self.normal(6, 5))
        batches = [self.rng.integers(0, 20, (b, 7)) for b in (9, 4)]
        drops = measure_drops(model, batches, (0.3, 0.6))
        self.assertEqual(list(drops), ["first", "second"])
        for factor, share in drops["first"].items():
            whole = self.model(factor)
            whole.set_weights(model.get_weights())
            tight = keras.Model(whole.inputs, whole.get_layer("first").output)
            self.assertAllClose(measure_usage(tight, batches)["first"].dropped_fraction, share)
        self.assertBetween(drops["first"][0.6], 1e-3, drops["first"][0.3])

    def test_wrong_factors_are_refused(self):
        with self.assertRaisesRegex(
            ValueError, "capacity_factors must be numbers above 0. Received: capacity_factors=0"
        ):
            measure_drops(self.model(), [np.ones((2, 3), int)], (1.0, 0))

    def test_factors_that_can_be_had_once(self):
        model = self.model()
        batches = [np.ones((2, 3), int)]
        found = measure_drops(model, batches, (factor for factor in (1.0, 8.0)))["first"]
        self.assertEqual(list(found), [1.0, 8.0])
        with self.assertRaisesRegex(ValueError, "capacity_factors=1.5. Pass a list"):
            measure_drops(model, batches, 1.5)

    def test_nothing_chosen(self):
        drops = measure_drops(self.model(), [np.zeros((2, 3), int)])
        self.assertEqual(drops["first"], {1.0: 0.0, 1.25: 0.0, 1.5: 0.0, 2.0: 0.0})
