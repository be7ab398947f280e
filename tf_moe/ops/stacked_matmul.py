"""Products of stacks of rows with stacks of matrices, `(G, n, D) @ (G, D, O)` -> `(G, n, O)`.

`tf.matmul` is fast at this on a GPU and with oneDNN. On a CPU without oneDNN (TensorFlow 2.21), with 256 groups of 64
rows and matrices of 512 x 1024, it takes twice the time of one product of the same arithmetic, and five times for the
gradient of the rows; with 1024 groups of 16 rows fifteen times. For it computes one product of the stack after another,
and copies each transposed matrix by its columns, whose numbers are 4 kB apart and push one another out of the cache.

There we do one group at a time with several in flight, and the gradient of the rows as `(kernel d^T)^T`, where nothing
large is transposed: `ragged_matmul.py`. As that needs no stacks, experts in training take their rows without them,
unless there is a capacity.

Whether this is still needed tells `TF_ENABLE_ONEDNN_OPTS=0 python examples/benchmarks/layer.py`, with and without it.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_moe.ops.onednn import has_onednn
from tf_moe.ops.ragged_matmul import edges_of, ragged_matmul, ragged_matmul_transposed, transposed_matmul
from tf_moe.ops.xla import compiled_by_xla

# Numbers in the smallest matrix for which a turn of the loop costs less than it saves, on two cores without oneDNN.
SMALLEST_MATRIX = 2**16


def is_slow(kernel_shape: Sequence[int]) -> bool:
    """Whether products of stacks with matrices `(G, D, O)` are slower than of one group at a time, here.

    Ask in the forward pass, as `compiled_by_xla` says, and not for tensors on a mesh.
    """
    if has_onednn() or compiled_by_xla() or tf.config.list_physical_devices("GPU"):
        return False
    return kernel_shape[1] * kernel_shape[2] >= SMALLEST_MATRIX


def fastest_matmul(training: bool = False) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """What multiplies `(G, n, D)` with `(G, D, O)`, G, D and O static, for this program on this machine.

    In which way, it decides at each call, see `is_slow`. Not for tensors on a mesh.

    Args:
        training: Whether the forward pass may be a loop, too. Otherwise it is one operation, as a model wants it that
            is exported: it may run on another machine.

    Returns:
        A function of `(G, n, D)` and `(G, D, O)`, which returns `(G, n, O)`; differentiable any number of times.
    """

    def matmul(rows, kernel):
        return _matmul_by_group_in_turn(rows, kernel, training) if is_slow(kernel.shape) else tf.matmul(rows, kernel)

    return matmul


def _matmul_by_group_in_turn(stack, kernel, training):
    """Their product, the gradients one group at a time, and in training the product too."""
    groups, size = kernel.shape[0], tf.shape(stack)[1]
    edges = edges_of(tf.fill([groups], size))

    def flat(stack):
        return tf.reshape(stack, [groups * size, stack.shape[2]])

    def stacked(rows):
        return tf.ensure_shape(tf.reshape(rows, [groups, size, rows.shape[1]]), [groups, stack.shape[1], rows.shape[1]])

    @tf.custom_gradient
    def product(stack, kernel):
        def gradient(d):
            if groups == 1:
                d_stack = tf.expand_dims(transposed_matmul(d[0], kernel[0]), 0)
            else:
                d_stack = stacked(ragged_matmul_transposed(flat(d), kernel, edges))
            # That of the matrices is a product of stacks: what it takes is mostly its memory.
            return d_stack, tf.matmul(stack, d, transpose_a=True)

        if groups == 1:  # faster for few rows than a stack of one
            return tf.expand_dims(tf.matmul(stack[0], kernel[0]), 0), gradient
        if training:
            return stacked(ragged_matmul(flat(stack), kernel, edges)), gradient
        return tf.matmul(stack, kernel), gradient

    return product(stack, kernel)
