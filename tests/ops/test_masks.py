import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.ops.masks import attach_mask, attached_mask, mask_rows


class MaskRowsTest(TestCase):
    def test_any_rank_and_dtype(self):
        for mask in ([True, False, True], [[True, False], [False, False], [True, True]]):
            for dtype in (tf.float32, tf.float64, tf.float16, tf.bfloat16):
                x = self.normal(*np.shape(mask), 4)
                x[~np.array(mask)] = np.nan
                for instead in (0.0, 1.0):
                    found = mask_rows(tf.constant(x, dtype), tf.constant(mask), instead)
                    expected = tf.constant(np.where(np.isnan(x), instead, x), dtype)
                    self.assertEqual(found.dtype, dtype)
                    self.assertAllEqual(found, expected)

    def test_none_masks_nothing(self):
        x = tf.constant(self.normal(2, 3))
        self.assertIs(mask_rows(x, None), x)

    def test_unknown_ranks(self):
        rows = tf.function(mask_rows, input_signature=[tf.TensorSpec(None), tf.TensorSpec(None, tf.bool)])
        self.assertAllEqual(rows([[1.0, 2.0], [3.0, 4.0]], [False, True]), [[0, 0], [3, 4]])

    def test_masked_rows_have_no_gradient(self):
        x = tf.constant([[1.0, 2.0], [0.0, 3.0]])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(tf.math.log(mask_rows(x, tf.constant([True, False]), 1.0)))
        self.assertAllClose(tape.gradient(y, x), [[1, 0.5], [0, 0]])


class AttachedMaskTest(TestCase):
    def test_is_the_one_of_keras(self):
        embedded = keras.layers.Embedding(5, 2, mask_zero=True)(np.array([[1, 0]]))
        self.assertAllEqual(attached_mask(embedded), [[True, False]])
        self.assertIsNone(attached_mask(tf.zeros([1, 2])))

    def test_losses_of_keras_find_it(self):
        y_pred = tf.constant([[[2.0], [4.0]]])
        attach_mask(y_pred, None)
        self.assertIsNone(attached_mask(y_pred))
        attach_mask(y_pred, tf.constant([[False, True]]))
        self.assertAllClose(keras.losses.MeanSquaredError()(tf.zeros([1, 2, 1]), y_pred), 16)
