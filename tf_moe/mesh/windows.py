"""A window on sorted rows: on each device, the rows of every group from one position of the group to another.

Legend: (N, R) devices, M sorted rows a device, G groups, C places a group, D width.
"""

from typing import NamedTuple

import tensorflow as tf

from tf_moe.mesh.device_groups import ShardedGroups
from tf_moe.mesh.device_rows import gather_or_zero


class Window(NamedTuple):
    """Which place holds which row, in both directions; -1 is none. As `ops.block.Block`, but without gradients.

    Attributes:
        row: Int32 `(N, R, G, C)`, the row at each place.
        place: Int32 `(N, R, M)`, the place g * C + c of each row; -1 for rows outside the window.
    """

    row: tf.Tensor
    place: tf.Tensor

    def fill(self, rows: tf.Tensor) -> tf.Tensor:
        """`(N, R, M, D)` -> `(N, R, G, C, D)`; places without a row are zero. Without gradient."""
        return gather_or_zero(rows, self.row)

    def read(self, values: tf.Tensor) -> tf.Tensor:
        """`(N, R, G, C, D)` -> `(N, R, M, D)`; rows without a place are zero. Without gradient."""
        shards, replicas, num_groups, places, width = values.shape
        return gather_or_zero(tf.reshape(values, [shards, replicas, num_groups * places, width]), self.place)


def make_window(groups: ShardedGroups, start: int | tf.Tensor, places: int) -> Window:
    """The rows from position `start` of each group on, up to `places` of them."""
    num_groups = groups.counts.shape[-1]
    column = start + tf.reshape(tf.range(places), [1, 1, 1, places])
    row = tf.expand_dims(groups.starts, -1) + column
    row = tf.where(column < tf.expand_dims(groups.counts, -1), row, tf.fill(row.shape, -1))

    index = tf.reshape(tf.range(groups.group.shape[-1]), [1, 1, groups.group.shape[-1]])
    position = index - gather_or_zero(groups.starts, groups.group) - start
    held = tf.logical_and(groups.group < num_groups, tf.logical_and(position >= 0, position < places))
    place = tf.where(held, groups.group * places + position, tf.fill(position.shape, -1))
    return Window(row, place)
