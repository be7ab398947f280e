"""Choosing in rows `(T, E)`, with gradients, on one device or a mesh."""

import tensorflow as tf

from tf_moe.mesh import chosen
from tf_moe.mesh.shards import current_shards
from tf_moe.ops.top_k import top_k_indices


def top_k(x: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Values and int32 indices `(T, k)` of the k largest in each row of x `(T, E)`, largest first."""
    if current_shards():
        return chosen.top_k(x, k)
    index = top_k_indices(x, k)
    return tf.gather(x, index, batch_dims=1), index


def read_at(x: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """The values of x `(T, E)` at `index` `(T, K)`."""
    return chosen.read_at(x, index) if current_shards() else tf.gather(x, index, batch_dims=1)


def add_at(values: tf.Tensor, index: tf.Tensor, size: int) -> tf.Tensor:
    """Zeros `(T, size)` with `values` `(T, K)` added at `index` `(T, K)`."""
    if current_shards():
        return chosen.add_at(values, index, size)
    rows = tf.shape(index, tf.int64)[0]  # there may be more cells than int32 can number
    cell = tf.expand_dims(tf.range(rows), -1) * size + tf.cast(index, tf.int64)
    flat = tf.math.unsorted_segment_sum(tf.reshape(values, [-1]), tf.reshape(cell, [-1]), rows * size)
    return tf.reshape(flat, [rows, size])
