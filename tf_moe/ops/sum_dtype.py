"""The dtype of sums of many parts."""

import tensorflow as tf


def sum_dtype(dtype: tf.DType | str) -> tf.DType:
    """Float32 for half precision, in which a sum stops growing at a few hundred times a part; else the dtype itself."""
    dtype = tf.as_dtype(dtype)
    return tf.float32 if dtype in (tf.bfloat16, tf.float16) else dtype
