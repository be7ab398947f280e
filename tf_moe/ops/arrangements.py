"""How rows stand that meet the weights of their group: in a stack for each group, or sorted, one group after another.

Either has what a function needs that is to work with both: products with the groups' matrices, and the groups' vectors
as they are added to rows or multiplied with them.

Legend: G groups, n rows in a stack, S sorted rows, D width in, O width out.
"""

from collections.abc import Callable

import tensorflow as tf

from tf_moe.ops.ragged_matmul import edges_of, ragged_matmul


class Stacks:
    """Rows `(G, n, D)`.

    Args:
        matmul: What multiplies `(G, n, D)` with `(G, D, O)`, see `fastest_matmul`. Default `tf.matmul`.
    """

    def __init__(self, matmul: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = tf.matmul):
        self.matmul = matmul

    def vectors(self, stack: tf.Tensor) -> tf.Tensor:
        """`(G, D)`, of each group one, as `(G, 1, D)`."""
        return tf.expand_dims(stack, 1)


class Ragged:
    """Rows `(1, S, D)`, sorted by group.

    Args:
        counts: Int32 `(G,)`, rows of each group.
        size: S. Rows after the last group's are of none: products are zero there, and so are vectors.
    """

    def __init__(self, counts: tf.Tensor, size: int | tf.Tensor):
        self._edges, self._size = edges_of(counts), size

    def matmul(self, rows: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """`(1, S, D)`, `(G, D, O)` -> `(1, S, O)`."""
        return tf.expand_dims(ragged_matmul(rows[0], kernel, self._edges), 0)

    def vectors(self, stack: tf.Tensor) -> tf.Tensor:
        """`(G, D)`, of each group one, as `(1, S, D)`."""
        group = tf.searchsorted(self._edges[1:], tf.range(self._size), side="right")
        return tf.expand_dims(tf.gather(tf.pad(stack, [[0, 1], [0, 0]]), group), 0)
