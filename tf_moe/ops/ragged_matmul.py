"""Products of rows sorted by group with the matrices of their groups, one group at a time, without places between them.

`tf.while_loop` has several groups in flight. Where `tf.matmul` of stacks is faster, see `stacked_matmul.py`.

Legend: S rows, G groups, D width in, O width out. `edges`, int32 `(G + 1,)`, are where the groups' rows start and end;
rows after the last edge are not looked at.
"""

from collections.abc import Callable

import tensorflow as tf

from tf_moe.ops.slices import write_rows

# With more rows than this, the copy of a transposed matrix costs less than transposing the rows; on two CPU cores.
MANY_ROWS = 512


def edges_of(counts: tf.Tensor) -> tf.Tensor:
    """Where the groups' rows start and end, int32 `(G + 1,)`, given how many there are of each, `(G,)`."""
    return tf.concat([[0], tf.cumsum(counts)], 0)


def ragged_matmul(rows: tf.Tensor, kernel: tf.Tensor, edges: tf.Tensor) -> tf.Tensor:
    """`rows[s] @ kernel[g]` for each row s of each group g; differentiable any number of times, as the others here.

    Args:
        rows: `(S, D)`.
        kernel: `(G, D, O)`, its shape static.
        edges: `(G + 1,)`.

    Returns:
        `(S, O)`, zero after the last edge.
    """

    @tf.custom_gradient
    def product(rows, kernel):
        def gradient(d):
            return ragged_matmul_transposed(d, kernel, edges), ragged_outer(rows, d, edges)

        return _rows_each(tf.matmul, rows, kernel, kernel.shape[2], edges), gradient

    return product(rows, kernel)


def ragged_matmul_transposed(rows: tf.Tensor, kernel: tf.Tensor, edges: tf.Tensor) -> tf.Tensor:
    """`rows[s] @ kernel[g]^T` for each row s of each group g: `(S, O)`, `(G, D, O)` -> `(S, D)`."""

    @tf.custom_gradient
    def product(rows, kernel):
        def gradient(d):
            return ragged_matmul(d, kernel, edges), ragged_outer(d, rows, edges)

        return _rows_each(transposed_matmul, rows, kernel, kernel.shape[1], edges), gradient

    return product(rows, kernel)


def ragged_outer(rows: tf.Tensor, others: tf.Tensor, edges: tf.Tensor) -> tf.Tensor:
    """`rows^T @ others` of each group: `(S, D)`, `(S, O)` -> `(G, D, O)`, zero for a group without rows."""

    @tf.custom_gradient
    def product(rows, others):
        def gradient(d):
            return ragged_matmul_transposed(others, d, edges), ragged_matmul(rows, d, edges)

        def write(n, products):
            product = tf.matmul(_of_group(rows, edges, n), _of_group(others, edges, n), transpose_a=True)
            return write_rows(products, n, tf.expand_dims(product, 0))

        groups, shape = edges.shape[0] - 1, [rows.shape[1], others.shape[1]]
        return _each(write, groups, tf.raw_ops.Empty(shape=[groups, *shape], dtype=rows.dtype)), gradient

    return product(rows, others)


def transposed_matmul(rows: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """`(n, O)`, `(D, O)` -> `(n, D)`. A transposed matrix is copied by its columns, see `stacked_matmul.py`."""
    return tf.cond(
        tf.shape(rows)[0] < MANY_ROWS,
        lambda: tf.transpose(tf.matmul(kernel, rows, transpose_b=True)),
        lambda: tf.matmul(rows, kernel, transpose_b=True),
    )


def _rows_each(function, rows, kernel, width, edges):
    """`function(rows of g, kernel[g])`, which is `(n, width)`, for each g, and zeros for the rows after them."""

    def write(n, products):
        product = function(_of_group(rows, edges, n), kernel[n])
        # Shaped again: of no rows, tf.vectorized_map makes products of other widths (TensorFlow 2.21).
        return write_rows(products, edges[n], tf.reshape(product, [edges[n + 1] - edges[n], width]))

    size = tf.shape(rows)[0]
    products = _each(write, kernel.shape[0], tf.raw_ops.Empty(shape=tf.stack([size, width]), dtype=rows.dtype))
    products = write_rows(products, edges[-1], tf.zeros([size - edges[-1], width], rows.dtype))
    return tf.ensure_shape(products, [rows.shape[0], width])


def _of_group(rows, edges, n):
    return rows[edges[n] : edges[n + 1]]


def _each(write: Callable, groups: int, products: tf.Tensor) -> tf.Tensor:
    """`write(g, products)` for each group g, several at once but for the writing.

    Into one tensor, not a TensorArray: it may be most of the memory there is, which that would take twice.
    """
    return tf.while_loop(lambda n, _: n < groups, lambda n, products: (n + 1, write(n, products)), (0, products))[1]
