"""Between rows sorted by group and a block with the same number of places for each group.

Legend: S rows, G groups, C places a group, D width.
"""

from typing import NamedTuple

import tensorflow as tf

from tf_moe.ops.rows import gather_or_zero


class Block(NamedTuple):
    """Which place holds which row, in both directions; -1 is none. As `mesh.windows.Window`, but with gradients.

    Attributes:
        row: Int32 `(G, C)`, the row at each place.
        place: Int32 `(S,)`, the place g * C + c of each row; -1 for rows beyond the C first of their group and for rows
            of no group.
    """

    row: tf.Tensor
    place: tf.Tensor


def make_block(counts: tf.Tensor, size: int | tf.Tensor, places: int | tf.Tensor) -> Block:
    """The block that holds the first rows of each group.

    Args:
        counts: Int32 `(G,)`, rows of each group; the groups' rows follow one another.
        size: Number of rows S, at least the sum of the counts.
        places: Number of places C a group has.
    """
    ends = tf.cumsum(counts)
    starts = ends - counts
    row = held_by_block(starts, counts, places)
    index = tf.range(size)
    group = tf.searchsorted(ends, index, side="right")
    inside = tf.minimum(group, counts.shape[0] - 1)
    position = index - tf.gather(starts, inside)
    held = tf.logical_and(group < counts.shape[0], position < places)
    return Block(row, tf.where(held, inside * places + position, -1))


def held_by_block(starts: tf.Tensor, counts: tf.Tensor, places: int | tf.Tensor) -> tf.Tensor:
    """The row at each place of a block, int32 `(G, C)`, -1 where there is none, given each group's first row."""
    column = tf.expand_dims(tf.range(places), 0)
    return tf.where(column < tf.expand_dims(counts, 1), tf.expand_dims(starts, 1) + column, -1)


def to_block(rows: tf.Tensor, block: Block) -> tf.Tensor:
    """`(S, D)` -> `(G, C, D)`; places without a row are zero. The gradient is `from_block`."""

    @tf.custom_gradient
    def fill(rows):
        return gather_or_zero(rows, block.row), lambda d: from_block(d, block)

    return fill(rows)


def from_block(values: tf.Tensor, block: Block) -> tf.Tensor:
    """`(G, C, D)` -> `(S, D)`; rows without a place are zero. The gradient is `to_block`."""

    @tf.custom_gradient
    def read(values):
        flat = tf.reshape(values, [tf.size(block.row), values.shape[-1]])
        return gather_or_zero(flat, block.place), lambda d: to_block(d, block)

    return read(values)
