"""Writing one slice of a large tensor without copying the rest."""

import tensorflow as tf


def add_to_slice(stack: tf.Tensor, at: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """`stack` `(G, ...)` with `value` `(...)` added to `stack[at]`.

    In place, if nothing else needs the stack; `tf.tensor_scatter_nd_add` copies it on a CPU even then (TensorFlow 2.21
    asks for host memory when it looks for a buffer to reuse, and finds none).
    """
    begin = tf.reshape(at, [1])
    return tf.raw_ops.TensorStridedSliceUpdate(
        input=stack, begin=begin, end=begin + 1, strides=[1], value=tf.expand_dims(stack[at] + value, 0)
    )
