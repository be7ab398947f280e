"""Where items stand in a buffer that holds each group's items together: first a block, then what is beyond it."""

from typing import NamedTuple

import tensorflow as tf

from tf_moe.ops.block import held_by_block
from tf_moe.ops.groups import Groups, group_by
from tf_moe.ops.hot_groups import cheapest_places
from tf_moe.ops.rows import gather_or_none
from tf_moe.ops.xla import compiled_by_xla


class BufferLayout(NamedTuple):
    """N items of G groups in a buffer of S rows.

    The first G * C rows are the block: C places for each group, in which its first items stand. The rows after them are
    those of the groups that have more than C, sorted by group.

    Attributes:
        item: Int32 `(S,)`, the item in each row; -1 where a row is empty.
        row: Int32 `(N,)`, the row of each item; -1 for an item of no group.
        counts: Int32 `(G,)`, items of each group.
        places: Int32 scalar C, places of each group in the block. None: there is no block, all rows are sorted by
            group, and those of no group come last.
    """

    item: tf.Tensor
    row: tf.Tensor
    counts: tf.Tensor
    places: tf.Tensor | None


def make_buffer_layout(index: tf.Tensor, num_groups: int, with_block: bool = True) -> BufferLayout:
    """Arrange items by group so that `apply_grouped` is fastest.

    Args:
        index: Int32 `(N,)`, the group of each item; `num_groups` for an item of no group.
        num_groups: Number of groups G.
        with_block: Whether there may be a block. Its size follows from the loads. Under XLA, where it cannot, there is
            none, and there are always N rows.
    """
    groups = group_by(index, num_groups)
    place = tf.where(index < num_groups, groups.place, -1)
    total = tf.reduce_sum(groups.counts)
    if compiled_by_xla():
        item = tf.where(tf.range(tf.size(index)) < total, groups.order, -1)
        return BufferLayout(item, place, groups.counts, None)
    if not with_block:
        return BufferLayout(groups.order[:total], place, groups.counts, None)
    return _with_block(index, place, groups, total, cheapest_places(groups.counts))


def _with_block(index, place, groups: Groups, total, places):
    held = tf.reshape(held_by_block(groups.starts, groups.counts, places), [-1])  # which sorted item, if any

    group = tf.minimum(index, groups.counts.shape[0] - 1)
    position = place - tf.gather(groups.starts, group)
    more = tf.maximum(groups.counts - places, 0)
    beyond = tf.gather(groups.counts.shape[0] * places + tf.cumsum(more, exclusive=True) - places, group)
    row = tf.where(position < places, group * places, beyond) + position
    row = tf.where(place < 0, -1, row)

    # Rows beyond the block hold what is left of the sorted items, in their order.
    sorted_group = tf.gather(group, groups.order[:total])
    sorted_position = tf.range(total) - tf.gather(groups.starts, sorted_group)
    left = tf.boolean_mask(groups.order[:total], sorted_position >= places)
    in_block = gather_or_none(groups.order, held)
    return BufferLayout(tf.concat([in_block, left], 0), row, groups.counts, places)
