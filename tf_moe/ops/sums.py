"""Sums over the items of each group, on one device or a mesh."""

import tensorflow as tf

from tf_moe.mesh import device_groups
from tf_moe.mesh.shards import current_shards


def sum_by_group(values: tf.Tensor, index: tf.Tensor, num_groups: int) -> tf.Tensor:
    """Sum of the values of each group, `(G,)`.

    Args:
        values: `(T, K)`.
        index: Int32 `(T, K)`, all of 0..G-1: on a CPU others are an error, and on a mesh they belong to no group.
        num_groups: Number of groups G.
    """
    if current_shards():
        return device_groups.sum_by_group(values, index, num_groups, "tk->")
    return tf.math.unsorted_segment_sum(tf.reshape(values, [-1]), tf.reshape(index, [-1]), num_groups)


def sum_rows_by_group(rows: tf.Tensor, index: tf.Tensor, num_groups: int) -> tf.Tensor:
    """Sum of the rows `(M, O)` of each group, `(G, O)`; `index` is `(M,)`, G for a row of no group."""
    if current_shards():
        return tf.einsum("mg,mo->go", tf.one_hot(index, num_groups, dtype=rows.dtype), rows)
    return tf.math.unsorted_segment_sum(rows, index, num_groups + 1)[:num_groups]
