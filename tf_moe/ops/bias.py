"""Adding a bias to many rows, with a gradient that is right in half precision too."""

import tensorflow as tf

from tf_moe.ops.sum_dtype import sum_dtype


def add_bias(rows: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Rows `(..., D)` of a known rank, plus a bias `(D,)` of their dtype, which the result has too.

    The gradient of a bias is a sum over all rows. On a CPU TensorFlow 2.21 makes it in the dtype of the rows: that of
    `tf.nn.bias_add` ends at 256 times a bfloat16, that of `+` at 2048 times a float16 (`tests/ops/test_bias.py` tells
    when that is over). Here it is summed in float32.
    """
    if sum_dtype(rows.dtype) == rows.dtype:
        return tf.nn.bias_add(rows, bias)

    @tf.custom_gradient
    def add(rows, bias):
        def gradient(d):
            total = tf.reduce_sum(tf.cast(d, sum_dtype(d.dtype)), axis=list(range(d.shape.rank - 1)))
            return d, tf.cast(total, d.dtype)

        return rows + bias, gradient

    return add(rows, bias)
