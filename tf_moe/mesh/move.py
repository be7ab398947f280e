"""How rows meet the weights of their group: by going to the weights' device, or by staying where all weights are.

Legend: N shards, R replicas, G groups, C places a group on each device, D width.
"""

import tensorflow as tf
from tensorflow.experimental import dtensor

from tf_moe.mesh.shards import EXPERT, Shards
from tf_moe.mesh.windows import Window


class Exchange:
    """An all-to-all: every device sends every other the rows for the groups whose weights are there.

    DTensor 2.21 mixes up the data of an all-to-all unless one of the two dimensions is the first (tested in
    `tests/mesh/test_move.py`). Here it always is: from dimension 0, the shards', to dimension 2, the groups', and back.

    Args:
        shards: The mesh.
    """

    def __init__(self, shards: Shards):
        self._shards = shards

    def there(self, x: tf.Tensor) -> tf.Tensor:
        """`(N, R, G, C, D)` at the tokens' devices -> `(G, N * R * C, D)` at the weights'."""
        shards, replicas, groups, places, width = x.shape
        # In one piece (see Shards.split), every device has all rows and just keeps those of its groups.
        second = dtensor.UNSHARDED if shards * replicas == 1 else self._shards.replica_axis
        # Twice, as DTensor would not know where constants are, such as the gradient of a loss that is a plain sum.
        x = self._shards.relayout(self._shards.relayout_tokens(x), {1: second, 2: EXPERT})
        # The replicas come before the shards again: a split dimension can be merged with others as their first.
        return tf.reshape(tf.transpose(x, [2, 1, 0, 3, 4]), [groups, shards * replicas * places, width])

    def back(self, y: tf.Tensor, window: Window) -> tf.Tensor:
        """`(G, N * R * C, D)` at the weights' devices -> `(N, R, G, C, D)` at the tokens'."""
        shards, replicas, groups, size = window.row.shape
        y = tf.transpose(tf.reshape(y, [groups, replicas, shards, size, y.shape[-1]]), [2, 1, 0, 3, 4])
        return self._shards.relayout_tokens(y)


class Stay:
    """Nothing moves: every device has the weights of all groups."""

    @staticmethod
    def there(x: tf.Tensor) -> tf.Tensor:
        """`(N, R, G, C, D)` as it is."""
        return x

    @staticmethod
    def back(y: tf.Tensor, window: Window) -> tf.Tensor:
        """`(N, R, G, C, D)` as it is."""
        return y
