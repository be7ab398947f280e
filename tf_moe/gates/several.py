"""Several gates of one kind over the same experts: a token is multiplied with the kernels of its own gate alone."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_moe.ops.by_group import matmul_by_group


def products(inputs: tf.Tensor, kernels: Sequence[keras.Variable], gate_id: tf.Tensor | None = None) -> list[tf.Tensor]:
    """Tokens times each of some kernels of the same shape.

    Args:
        inputs: `(T, D)`.
        kernels: Each `(D, E)`; with `gate_id`, `(G, D, E)`, a slice for each gate.
        gate_id: Optional int32 `(T,)`; G for a token of no gate, whose products are zero.

    Returns:
        `(T, E)` for each kernel.

    Example:

    >>> kernel = tf.random.normal([2, 16, 8])  # of two gates
    >>> logits, = tf_moe.gates.products(tf.ones([3, 16]), [kernel], gate_id=tf.constant([0, 1, 0]))
    >>> logits.shape
    TensorShape([3, 8])
    """
    if gate_id is None:
        return [tf.matmul(inputs, kernel) for kernel in kernels]
    # As one product, for the tokens are sorted by gate for each.
    stacked = tf.concat([tf.convert_to_tensor(kernel) for kernel in kernels], axis=-1)
    multiplied = matmul_by_group(inputs, tf.expand_dims(gate_id, -1), stacked)
    return tf.split(tf.squeeze(multiplied, 1), len(kernels), axis=-1)
