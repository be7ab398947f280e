"""How rows stand that meet the weights of their group: in a stack for each group, or sorted, one group after another.

Either has what a function needs that is to work with both: products with the groups' matrices, and sums and products
with the groups' vectors.

Legend: G groups, n rows in a stack, S sorted rows, D width in, O width out.
"""

from collections.abc import Callable

import tensorflow as tf

from tf_moe.ops.ragged_matmul import edges_of, ragged_matmul
from tf_moe.ops.sum_dtype import sum_dtype
from tf_moe.ops.xla import not_before


class Stacks:
    """Rows `(G, n, D)`.

    Args:
        matmul: What multiplies `(G, n, D)` with `(G, D, O)`, see `fastest_matmul`. Default `tf.matmul`.
    """

    def __init__(self, matmul: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = tf.matmul):
        self.matmul = matmul

    def add(self, rows: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        """To each row the vector of its group: `(G, n, D)`, `(G, D)` -> `(G, n, D)`."""
        return rows + tf.expand_dims(vectors, 1)

    def scale(self, rows: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        """Each row times the vector of its group, which has no gradient: `(G, n, D)`, `(G, D)` -> `(G, n, D)`."""
        return rows * tf.stop_gradient(tf.expand_dims(vectors, 1))


class Ragged:
    """Rows `(1, S, D)`, sorted by group. Those after the last group's are of none; it is as if its matrix were zero.

    What is spread to the rows is spread again where it is needed again, and never kept.

    Args:
        counts: Int32 `(G,)`, rows of each group, G static.
    """

    def __init__(self, counts: tf.Tensor):
        self._edges, self._num_groups = edges_of(counts), counts.shape[0]

    def matmul(self, rows: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """`(1, S, D)`, `(G, D, O)` -> `(1, S, O)`."""
        return tf.expand_dims(ragged_matmul(rows[0], kernel, self._edges), 0)

    def add(self, rows: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        """To each row the vector of its group: `(1, S, D)`, `(G, D)` -> `(1, S, D)`."""

        @tf.custom_gradient
        def add(rows, vectors):
            def gradient(d):
                # A sum of many: in half precision it would stop growing.
                sums = tf.cast(d[0], sum_dtype(d.dtype))
                sums = tf.math.unsorted_segment_sum(sums, self._group(d), self._num_groups + 1)
                return d, tf.cast(sums[: self._num_groups], d.dtype)

            return rows + self._spread(vectors, rows), gradient

        return add(rows, vectors)

    def scale(self, rows: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        """Each row times the vector of its group, which has no gradient: `(1, S, D)`, `(G, D)` -> `(1, S, D)`."""

        @tf.custom_gradient
        def scale(rows):
            return rows * self._spread(vectors, rows), lambda d: d * self._spread(vectors, d)

        return scale(rows)

    def _spread(self, vectors, rows):
        """The vector of each of these rows."""
        # Not before there are rows: the graph optimizer would merge it with the same gather done before, and keep it in
        # memory.
        vectors = not_before(tf.stop_gradient(vectors), rows, under_xla=False)
        return tf.expand_dims(tf.gather(tf.pad(vectors, [[0, 1], [0, 0]]), self._group(rows)), 0)

    def _group(self, rows):
        return tf.searchsorted(self._edges[1:], tf.range(tf.shape(rows)[1]), side="right")
