"""Sorting each device's items by the group they belong to. See `ops/groups.py`; here every device sorts its own.

Legend: (N, R) devices, M items a device, G groups.
"""

import math
from typing import NamedTuple

import tensorflow as tf


class ShardedGroups(NamedTuple):
    """Items sorted by group on each device; items of no group come last.

    Attributes:
        order: Int32 `(N, R, M)`, the item at each sorted place.
        place: Int32 `(N, R, M)`, the sorted place of each item, the inverse of `order`.
        group: Int32 `(N, R, M)`, the group at each sorted place; G for items of no group.
        counts: Int32 `(N, R, G)`, items of each group.
    """

    order: tf.Tensor
    place: tf.Tensor
    group: tf.Tensor
    counts: tf.Tensor

    @property
    def starts(self) -> tf.Tensor:
        """Int32 `(N, R, G)`, first sorted place of each group."""
        return tf.cumsum(self.counts, axis=-1, exclusive=True)


def group_by(index: tf.Tensor, num_groups: int, priority: tf.Tensor | None = None) -> ShardedGroups:
    """Sort each device's items by group.

    Args:
        index: Int32 `(N, R, M)`, the group of each item; `num_groups` for an item of no group.
        num_groups: Number of groups G.
        priority: Optional `(N, R, M)`; within a group, items with a higher one come first. Default: in their order.
    """
    if priority is None:
        order = tf.argsort(index, axis=-1, stable=True)
    else:  # sorting by priority first and then stably by group sorts by both
        first = tf.argsort(priority, axis=-1, direction="DESCENDING", stable=True)
        then = tf.argsort(tf.gather(index, first, batch_dims=2, axis=2), axis=-1, stable=True)
        order = tf.gather(first, then, batch_dims=2, axis=2)
    group = tf.gather(index, order, batch_dims=2, axis=2)
    counts = tf.cast(sum_by_group(tf.ones_like(index, tf.float32), index, num_groups, "nrm->nr"), tf.int32)
    # A scatter would invert the permutation faster, but for it DTensor collects the permutations of all devices.
    return ShardedGroups(order, tf.argsort(order, axis=-1), group, counts)


def sum_by_group(values: tf.Tensor, index: tf.Tensor, num_groups: int, sums: str) -> tf.Tensor:
    """Sum of the values of each group, as a matrix product: DTensor collects all devices' data for a segment sum.

    A group's number is written in two digits, and the sum over items of the outer products of the two digits' one-hot
    vectors has a cell for every group. That is G multiply-adds an item.

    Args:
        values: Float32, with one dimension for every letter before the arrow in `sums`.
        index: Int32, of the same shape; numbers outside 0..G-1 belong to no group.
        num_groups: Number of groups G.
        sums: Which dimensions are summed over, as `tf.einsum` has it: "nrm->nr" sums over m on each device,
            `(N, R, G)`; "tk->" over all, `(G,)`.
    """
    base = math.isqrt(num_groups - 1) + 1
    high = tf.one_hot(tf.math.floordiv(index, base), base)
    low = tf.one_hot(tf.math.floormod(index, base), base) * tf.expand_dims(values, -1)
    axes, kept = sums.split("->")
    total = tf.einsum(f"{axes}a,{axes}b->{kept}ab", high, low)
    total = tf.reshape(total, [*total.shape[:-2], base * base])
    # Not a slice, whose gradient under XLA is an operation that DTensor does not know.
    return tf.split(total, [num_groups, base * base - num_groups], axis=-1)[0]
