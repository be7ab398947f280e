"""Deterministic choice among equal logits."""

import numpy as np
import tensorflow as tf

from tf_moe.ops.top_k import top_k_indices


def top_k_spread(logits: tf.Tensor, token_code: tf.Tensor, k: int) -> tf.Tensor:
    """Indices of the k largest logits of each token, ties broken differently for different tokens.

    `top_k` gives every tie to the lowest index: an untrained gate, whose logits are all zero, would send every token to
    the first k experts at evaluation. Here expert `code mod E` of a token comes first among equals, then the next one,
    and so on around.

    Args:
        logits: Float32 `(T, E)`.
        token_code: Int32 `(T,)`, from `code_tokens`.
        k: Number of indices.

    Returns:
        Int32 `(T, k)`, largest logit first, without gradient.
    """
    num_experts = logits.shape[-1]
    expert = tf.math.floormod(tf.expand_dims(token_code, -1) + tf.range(num_experts), num_experts)
    # One of the two zeros only: XLA's top_k tells them apart.
    logits = tf.where(logits == 0, 0.0, tf.stop_gradient(logits))
    turned = tf.gather(logits, expert, batch_dims=1)
    return tf.gather(expert, top_k_indices(turned, k), batch_dims=1)


def code_tokens(x: tf.Tensor) -> tf.Tensor:
    """A number for each token that depends on its content alone, so never on the batch it comes in.

    It is made of comparisons between neighbouring features, which rounding in the layers before seldom changes (a hash
    of the bits would be another every time), and of exact integer arithmetic. Neighbours that become equal do change
    it: the same token in bfloat16 often has another number than in float32.

    Args:
        x: `(T, D)`.

    Returns:
        Int32 `(T,)`.
    """
    before = tf.pad(x[:, :-1], [[0, 0], [1, 0]])
    rises = tf.cast(x > before, tf.int32)
    weights = np.random.RandomState(0).randint(-(2**31), 2**31, size=x.shape[-1], dtype=np.int64)
    total = tf.reduce_sum(rises * tf.constant(weights, tf.int32), axis=-1)
    return tf.math.floordiv(total, 2**12)  # the sum wraps around: its high bits are the well-mixed ones
