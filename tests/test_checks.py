"""What the checks let through; what they do not is mostly in `tests/bad_input`."""

import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe import checks
from tf_moe.layers import SparseMoE


class ChecksTest(TestCase):
    def test_integers_of_numpy_become_plain(self):
        for value in (3, np.int64(3), np.int32(3)):
            self.assertIs(type(checks.integer("n", value)), int)
            self.assertIs(type(checks.seed(value)), int)
        self.assertEqual((checks.integer("n", 0, least=0), checks.seed(-1), checks.seed(None)), (0, -1, None))

    def test_rising_integers(self):
        self.assertEqual(checks.rising("sizes", np.array([1, 4])), [1, 4])
        for values, pattern in (
            ([], r"sizes must be rising .*sizes=\[\]"),
            ([4, 4], r"sizes=\[4, 4\]"),
            ([4, 2], r"sizes=\[4, 2\]"),
            ([0, 2], r"sizes\[0\]=0"),
            ([1, 2.5], r"sizes\[1\]=2.5"),
        ):
            with self.assertRaisesRegex(ValueError, pattern):
                checks.rising("sizes", values)

    def test_numbers_become_floats(self):
        for value in (2, 2.0, np.float32(2), np.int64(2)):
            self.assertIs(type(checks.at_least_zero("x", value)), float)
        self.assertEqual(checks.at_least_zero("x", 0), 0)

    def test_shares_are_under_1(self):
        for value in (0, 0.0, 0.5, np.float32(0.5), 1 - 2.0**-53):
            share = checks.zero_to_below_one("x", value)
            self.assertIs(type(share), float)
            self.assertEqual(share, value)
        for value in (1, 1.0, -0.1, np.nan, True, "0.5", None):
            with self.assertRaisesRegex(ValueError, f"x must be a number from 0 to under 1. Received: x={value!r}"):
                checks.zero_to_below_one("x", value)

    def test_checked_attributes(self):
        class Layer(keras.layers.Layer):
            rate = checks.Checked(checks.at_least_zero)
            kind = checks.Checked(checks.one_of, ("a", "b"))

        layer, other = Layer(), Layer()
        self.assertFalse(hasattr(layer, "rate"))
        layer.rate, layer.kind, other.rate = 2, "b", 3
        self.assertEqual((layer.rate, layer.kind, other.rate), (2.0, "b", 3.0))
        with self.assertRaisesRegex(ValueError, "kind must be one of .'a', 'b'.*kind='c'"):
            layer.kind = "c"
        self.assertEqual(layer.kind, "b")

    def test_truth_values_of_all_kinds_say_whether_to_train(self):
        for value in (True, np.True_, 1, tf.constant(True)):
            self.assertIs(checks.training(value), True)
        for value in (False, np.False_, 0, None, tf.constant(False)):
            self.assertIs(checks.training(value), False)

    def test_masks_become_booleans(self):
        for value in ([1, 0], np.array([True, False]), tf.constant([1.0, 0.0])):
            self.assertAllEqual(checks.mask(value, tf.zeros([2, 3])), [True, False])

    def test_unknown_shapes_fit(self):
        mask = checks.mask(keras.Input((None,), dtype="bool"), keras.Input((5, 3)))
        self.assertEqual((mask.shape, mask.dtype), ((None, None), "bool"))

        @tf.function(input_signature=[tf.TensorSpec(None), tf.TensorSpec([None, 3])])
        def unknown(value, x):
            checks.same_shape(x=x, value=value)
            return checks.mask(value, x)

        self.assertAllEqual(unknown([1.0, 0.0], tf.zeros([2, 3])), [True, False])

    def test_configs_hold_plain_numbers(self):
        layer = SparseMoE(np.int64(8), np.int64(3), k=np.int64(2), capacity_factor=np.float32(1), seed=np.int64(1))
        config = layer.get_config()
        names = ("num_experts", "expert_hidden", "k", "capacity_factor", "seed")
        self.assertEqual([type(config[name]) for name in names], [int, int, int, float, int])
