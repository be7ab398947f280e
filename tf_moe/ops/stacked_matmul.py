"""Products of stacks of rows with stacks of matrices, `(G, n, D) @ (G, D, O)` -> `(G, n, O)`.

`tf.matmul` is fast at this on a GPU and with oneDNN. On a CPU without oneDNN (TensorFlow 2.21), with 256 groups of 64
rows and matrices of 512 x 1024, it takes twice the time of one product of the same arithmetic, and five times for the
gradient of the rows; with 1024 groups of 16 rows fifteen times. For it computes one product of the stack after another,
and copies each transposed matrix by its columns, whose numbers are 4 kB apart and push one another out of the cache.

There we do one group at a time with several in flight, and the gradient of the rows as `(kernel d^T)^T`, where nothing
large is transposed. The gradient of the matrices stays a product of stacks: what it takes is mostly its memory.

Whether this is still needed tells `TF_ENABLE_ONEDNN_OPTS=0 python examples/benchmarks/layer.py`, with and without it.
"""

from collections.abc import Callable

import tensorflow as tf

from tf_moe.ops.onednn import has_onednn
from tf_moe.ops.xla import compiled_by_xla

# Measured on two cores without oneDNN. A turn of the loop costs more than it saves with matrices smaller than this; and
# with more rows, the copy of a transposed matrix costs less than transposing the rows.
SMALLEST_MATRIX, MANY_ROWS = 2**16, 512


def fastest_matmul(training: bool = False) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """What multiplies `(G, n, D)` with `(G, D, O)`, D and O static, for this program on this machine.

    Ask in the forward pass, as `compiled_by_xla` says, and not for tensors on a mesh.

    Args:
        training: Whether the forward pass may be a loop, too. Otherwise it is one operation, as a model wants it that
            is exported: it may run on another machine.

    Returns:
        A function of `(G, n, D)` and `(G, D, O)`, which returns `(G, n, O)`; differentiable any number of times.
    """
    if has_onednn() or compiled_by_xla() or tf.config.list_physical_devices("GPU"):
        return tf.matmul

    def matmul(rows, kernel):
        if kernel.shape[1] * kernel.shape[2] < SMALLEST_MATRIX:
            return tf.matmul(rows, kernel)
        return _by_kernel(rows, kernel, training or kernel.shape[0] == 1)

    return matmul


def _by_kernel(rows, kernel, one_by_one):
    """`rows @ kernel`."""

    @tf.custom_gradient
    def product(rows, kernel):
        def gradient(d):
            return _by_transposed_kernel(d, kernel), tf.matmul(rows, d, transpose_a=True)

        return _each(tf.matmul, rows, kernel, kernel.shape[2]) if one_by_one else tf.matmul(rows, kernel), gradient

    return product(rows, kernel)


def _by_transposed_kernel(rows, kernel):
    """`rows @ kernel^T`: `(G, n, O)`, `(G, D, O)` -> `(G, n, D)`."""

    @tf.custom_gradient
    def product(rows, kernel):
        def gradient(d):
            return _by_kernel(d, kernel, one_by_one=True), tf.matmul(d, rows, transpose_a=True)

        return _each(_transposed_matmul, rows, kernel, kernel.shape[1]), gradient

    return product(rows, kernel)


def _transposed_matmul(rows, kernel):
    """`(n, O)`, `(D, O)` -> `(n, D)`."""
    return tf.cond(
        tf.shape(rows)[0] < MANY_ROWS,
        lambda: tf.transpose(tf.matmul(kernel, rows, transpose_b=True)),
        lambda: tf.matmul(rows, kernel, transpose_b=True),
    )


def _each(function, rows, kernel, width):
    """`function(rows[g], kernel[g])`, which is `(n, width)`, for each g."""
    groups = kernel.shape[0]
    if groups == 1:
        return tf.expand_dims(function(rows[0], kernel[0]), 0)
    products = tf.TensorArray(rows.dtype, groups, element_shape=[rows.shape[1], width])

    def body(n, products):
        return n + 1, products.write(n, function(rows[n], kernel[n]))

    _, products = tf.while_loop(lambda n, _: n < groups, body, (0, products))
    return tf.ensure_shape(products.stack(), [groups, rows.shape[1], width])
