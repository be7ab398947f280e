"""Choosing on a mesh: TensorFlow's gradients of top_k and gather are wrong there, or collect all devices' tokens."""

import tensorflow as tf


def top_k(x: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Values and int32 indices `(T, k)` of the k largest in each row of x `(T, E)`, as `tf.math.top_k`."""

    @tf.custom_gradient
    def choose(x):
        values, index = tf.math.top_k(x, k)
        return (values, index), lambda d_values, _: add_at(d_values, index, x.shape[-1])

    return choose(x)


def read_at(x: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """The values of x `(T, E)` at `index` `(T, K)`, as `tf.gather(x, index, batch_dims=1)`."""

    @tf.custom_gradient
    def read(x):
        return tf.gather(x, index, batch_dims=1), lambda d: add_at(d, index, x.shape[-1])

    return read(x)


def add_at(values: tf.Tensor, index: tf.Tensor, size: int) -> tf.Tensor:
    """Zeros `(T, size)` with `values` `(T, K)` added at `index` `(T, K)`."""
    column = tf.expand_dims(tf.range(size), 0)
    total = None
    for k in range(index.shape[-1]):
        hit = tf.equal(tf.slice(index, [0, k], [-1, 1]), column)
        added = tf.where(hit, tf.slice(values, [0, k], [-1, 1]), tf.zeros([], values.dtype))
        total = added if total is None else total + added
    return total
