import keras
import numpy as np

from tests.base import TestCase
from tf_moe.analysis import Usage, measure_all, measure_usage
from tf_moe.analysis.observer import Decisions
from tf_moe.analysis.usage import UsageTally
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

    def test_entropy_drops_and_dead_by_hand(self):
        """Of four positions one trusts two experts alike, two have one, one is masked. Nobody goes to expert 2."""
        layer = SparseMoE(3, 4, k=2)
        tally = UsageTally(layer)
        index = np.array([[0, 1], [1, 0], [1, 2], [2, 0]])
        gate = np.array([[0.5, 0.5], [1.0, 0.0], [0.25, 0.0], [0.0, 0.0]], "float32")
        tally.add(Decisions(layer, index, gate, 1, [4]), None)
        usage = tally.result()
        self.assertAllEqual(usage.load, [1, 3, 0])
        self.assertAllClose(usage.importance, [0.5, 1.75, 0])
        self.assertAllClose(usage.distribution, [1 / 6, 5 / 6, 0])  # the third position counts as much as any
        self.assertEqual((usage.positions, usage.dropped, usage.dropped_fraction), (3, 1, 0.25))
        self.assertAllClose(usage.mean_entropy, np.log(2) / 3)
        self.assertAllClose(usage.entropy_of_mean, np.log(6) / 6 + 5 / 6 * np.log(6 / 5))
        self.assertAllClose(usage.effective_experts, np.exp(usage.entropy_of_mean))
        self.assertAllEqual(usage.dead(), [2])
        self.assertAllEqual(usage.dead(0.75), [0, 2])
        self.assertEqual(usage.figures()["dead_experts"], 1)
        self.assertEmpty(UsageTally(layer).result().dead())  # no load at all: nobody is worse than another

    def test_counts_beyond_float32(self):
        layer = SparseMoE(1, 4, k=1)
        tally = UsageTally(layer)
        tally._load += 2.0**24
        tally.add(Decisions(layer, np.zeros((1, 1), "int32"), np.ones((1, 1), "float32"), 0, [1]), None)
        self.assertEqual(tally.result().load[0], 2**24 + 1)

    def test_two_layers_of_one_name(self):
        inner = [keras.Sequential([keras.Input((4,)), SparseMoE(2, 3, k=1, name="moe")], name=n) for n in "ab"]
        model = keras.Sequential([keras.Input((4,)), *inner])
        with self.assertRaisesRegex(ValueError, "two of the name 'moe'"):
            measure_usage(model, [self.normal(3, 4)])

    def test_no_such_layer(self):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="only")])
        with self.assertRaisesRegex(ValueError, "on any batch.*only"):
            measure_usage(model, [self.normal(3, 4)])

    def test_no_layer_asked_for(self):
        model = keras.Sequential([keras.Input((4,)), SparseMoE(2, 3, k=1)])
        with self.assertRaisesRegex(ValueError, r"one or more, or be None.*layers=\[\]"):
            measure_all(model, [self.normal(3, 4)], layers=[])
