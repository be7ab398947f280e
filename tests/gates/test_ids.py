import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.gates.ids import check_ids, spread_ids


class SpreadIdsTest(TestCase):
    @parameterized.parameters(
        ((2, 3),), ((2,),), ((2, 1),), ((1, 3),), ((1,),), ((),),
    )  # fmt: skip
    def test_each_stands_for_the_positions_behind_it(self, shape):
        ids = self.rng.integers(0, 9, shape)
        behind = ids.reshape(shape + (1,) * (2 - len(shape)))
        expected = np.broadcast_to(behind, (2, 3)).ravel()
        self.assertAllEqual(spread_ids(ids, tf.zeros([2, 3, 4])), expected)
        of_any_shape = tf.function(spread_ids).get_concrete_function(
            tf.TensorSpec([None] * len(shape), tf.int32), tf.TensorSpec([None, None, 4])
        )
        self.assertAllEqual(of_any_shape(tf.constant(ids, tf.int32), tf.zeros([2, 3, 4])), expected)

    def test_of_any_type_and_size(self):
        for dtype in ("int8", "uint8", "int16", "int32", "int64", "uint32"):
            ids = spread_ids(np.array([5, 100], dtype), tf.zeros([2, 4]))
            self.assertEqual(ids.dtype, tf.int64)
            self.assertAllEqual(ids, [5, 100])
        self.assertAllEqual(spread_ids([2**40, -1], tf.zeros([2, 4])), [2**40, -1])

    def test_symbolic(self):
        inputs = keras.Input((None, 4))
        for shape in ((), (7,), (1,)):
            ids = keras.Input(shape, dtype="int32")
            self.assertIs(check_ids(ids, inputs), ids)

    @parameterized.parameters(
        ([0.0, 1.0], r"integers.*dtype float32"),
        ([True, False], "dtype bool"),
        (["a", "b"], "dtype string"),
        ([0, 1, 2], r"gate_id \(3,\), inputs \(2, 3, 4\)"),
        ([[0, 1], [0, 1]], r"gate_id \(2, 2\)"),
        ([[[0]]], r"first of these, such as \(B,\).*gate_id \(1, 1, 1\)"),
    )
    def test_errors(self, ids, pattern):
        with self.assertRaisesRegex(ValueError, pattern):
            spread_ids(ids, tf.zeros([2, 3, 4]))
