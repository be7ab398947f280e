"""Sorting items by the group they belong to."""

from typing import NamedTuple

import tensorflow as tf


class Groups(NamedTuple):
    """N items sorted by group; items of no group come last.

    Attributes:
        order: Int32 `(N,)`. The item at each sorted place.
        place: Int32 `(N,)`. The sorted place of each item, the inverse of `order`.
        counts: Int32 `(G,)`. Items in each group.
        starts: Int32 `(G,)`. First sorted place of each group.
    """

    order: tf.Tensor
    place: tf.Tensor
    counts: tf.Tensor
    starts: tf.Tensor


def group_by(index: tf.Tensor, num_groups: int, priority: tf.Tensor | None = None) -> Groups:
    """Sort items by group.

    Args:
        index: Int32 `(N,)`, the group of each item; `num_groups` for an item of no group.
        num_groups: Number of groups G.
        priority: Optional `(N,)`; within a group, items with a higher one come first. Default: in their order.

    Example:

    >>> from tf_moe.ops.groups import group_by
    >>> group_by(tf.constant([1, 0, 2, 0]), num_groups=2).order  # item 2 is of no group
    <tf.Tensor: shape=(4,), dtype=int32, numpy=array([1, 3, 0, 2], dtype=int32)>
    """
    size = tf.shape(index)[0]
    if priority is None:
        order = tf.argsort(index, stable=True)
    else:  # sorting by priority first and then stably by group sorts by both
        first = tf.argsort(priority, direction="DESCENDING", stable=True)
        order = tf.gather(first, tf.argsort(tf.gather(index, first), stable=True))
    # A scatter inverts the permutation in linear time, where a second argsort would sort again.
    place = tf.scatter_nd(tf.expand_dims(order, -1), tf.range(size), tf.expand_dims(size, 0))
    counts = tf.math.unsorted_segment_sum(tf.ones_like(index), index, num_groups + 1)[:num_groups]
    return Groups(order, place, counts, tf.cumsum(counts, exclusive=True))
