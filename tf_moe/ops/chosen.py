"""Choosing in rows `(T, E)`, with gradients, on one device or a mesh.

On a mesh TensorFlow's gradients of top_k and gather are wrong, or collect all devices' tokens: it has functions of its
own.
"""

import tensorflow as tf

from tf_moe.mesh.shards import current_shards
from tf_moe.ops.top_k import top_k_indices


def top_k(x: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Values and int32 indices `(T, k)` of the k largest in each row of x `(T, E)`, largest first."""
    if current_shards():
        return _top_k_on_mesh(x, k)
    index = top_k_indices(x, k)
    return tf.gather(x, index, batch_dims=1), index


def read_at(x: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """The values of x `(T, E)` at `index` `(T, K)`."""
    return _read_at_on_mesh(x, index) if current_shards() else tf.gather(x, index, batch_dims=1)


def add_at(values: tf.Tensor, index: tf.Tensor, size: int) -> tf.Tensor:
    """Zeros `(T, size)` with `values` `(T, K)` added at `index` `(T, K)`."""
    if current_shards():
        return _add_at_on_mesh(values, index, size)
    rows = tf.shape(index, tf.int64)[0]  # there may be more cells than int32 can number
    cell = tf.expand_dims(tf.range(rows), -1) * size + tf.cast(index, tf.int64)
    flat = tf.math.unsorted_segment_sum(tf.reshape(values, [-1]), tf.reshape(cell, [-1]), rows * size)
    return tf.reshape(flat, [rows, size])


# Gradients call these, not the functions above: in a gradient, `current_shards` knows of no mesh.


def _top_k_on_mesh(x, k):
    @tf.custom_gradient
    def choose(x):
        values, index = tf.math.top_k(x, k)
        return (values, index), lambda d_values, _: _add_at_on_mesh(d_values, index, x.shape[-1])

    return choose(x)


def _read_at_on_mesh(x, index):
    @tf.custom_gradient
    def read(x):
        return tf.gather(x, index, batch_dims=1), lambda d: _add_at_on_mesh(d, index, x.shape[-1])

    return read(x)


def _add_at_on_mesh(values, index, size):
    column = tf.expand_dims(tf.range(size), 0)
    total = None
    for k in range(index.shape[-1]):
        hit = tf.equal(tf.slice(index, [0, k], [-1, 1]), column)
        added = tf.where(hit, tf.slice(values, [0, k], [-1, 1]), tf.zeros([], values.dtype))
        total = added if total is None else total + added
    return total
