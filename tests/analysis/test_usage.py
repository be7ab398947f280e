import keras
import numpy as np

from tests.base import TestCase
from tf_moe.analysis import Usage, measure_usage
from tf_moe.layers import SparseMoE


class UsageTest(TestCase):
    def model(self, mask_zero):
        return keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                keras.layers.Embedding(20, 6, mask_zero=mask_zero),
                SparseMoE(5, 3, k=2, name="first"),
                SparseMoE((2, 3), 3, k=(1, 2), name="second"),
            ]
        )

    def test_counts_every_position_of_every_layer(self):
        model = self.model(mask_zero=False)
        batches = [self.rng.integers(1, 20, (b, 4)) for b in (3, 2)]
        usage = measure_usage(model, batches)
        self.assertEqual([u.load.sum() for u in usage.values()], [2 * 20, 2 * 20])
        embedded = [model.layers[0](x) for x in batches]
        expected = sum(model.get_layer("first").route(x).load.numpy() for x in embedded)
        self.assertAllEqual(usage["first"].load, expected)
        self.assertAllClose(usage["first"].importance.sum(), 20)  # gate values of a position sum to 1

    def test_masked_positions_are_left_out(self):
        usage = measure_usage(self.model(mask_zero=True), [(np.array([[3, 4, 0, 0]]), None)])
        self.assertEqual(usage["first"].load.sum(), 2 * 2)

    def test_figures_by_hand(self):
        usage = Usage(np.array([1.0, 1, 4]), np.array([2.0, 2, 2]))
        self.assertAllClose((usage.load_cv, usage.importance_cv, usage.max_over_mean_load), (0.5**0.5, 0, 2))
        self.assertEqual(Usage(np.zeros(3), np.zeros(3)).max_over_mean_load, 0)

    def test_two_layers_of_one_name(self):
        inner = [keras.Sequential([keras.Input((4,)), SparseMoE(2, 3, k=1, name="moe")], name=n) for n in "ab"]
        model = keras.Sequential([keras.Input((4,)), *inner])
        with self.assertRaisesRegex(ValueError, "two of the name 'moe'"):
            measure_usage(model, [self.normal(3, 4)])

    def test_no_such_layer(self):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="only")])
        with self.assertRaisesRegex(ValueError, "only"):
            measure_usage(model, [])
