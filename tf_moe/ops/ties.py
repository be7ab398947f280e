"""Deterministic choice among equal logits."""

import numpy as np
import tensorflow as tf

# Relative to the largest logit of a token: a few units in the last place of float32.
_NUDGE = 2.0**-20


def spread_ties(logits: tf.Tensor, token_code: tf.Tensor) -> tf.Tensor:
    """Logits for choosing only, in which ties are broken differently for different tokens.

    `top_k` gives every tie to the lowest index: an untrained gate, whose logits are all zero, would send every token to
    the first k experts at evaluation. Here expert `code mod E` of a token comes first among equals, then the next one,
    and so on around. Logits that differ by more than a millionth of the largest keep their order.

    Args:
        logits: Float32 `(T, E)`.
        token_code: Int32 `(T,)`, from `code_tokens`.

    Returns:
        Float32 `(T, E)` without gradient.
    """
    num_experts = logits.shape[-1]
    turn = tf.math.floormod(tf.expand_dims(token_code, -1) - tf.range(num_experts) - 1, num_experts)
    # The smallest normal number keeps the nudge alive where all logits are zero.
    scale = _NUDGE * tf.reduce_max(tf.abs(logits), axis=-1, keepdims=True) + 1e-30
    return tf.stop_gradient(logits + scale * tf.cast(turn, logits.dtype) / num_experts)


def code_tokens(x: tf.Tensor) -> tf.Tensor:
    """A number for each token that depends on its content alone, so never on the batch it comes in.

    It is made of comparisons between neighbouring features, which rounding in the layers before does not change (a hash
    of the bits would), and of exact integer arithmetic.

    Args:
        x: `(T, D)`.

    Returns:
        Int32 `(T,)`.
    """
    rises = tf.cast(x > tf.roll(x, shift=1, axis=-1), tf.int32)
    weights = np.random.RandomState(0).randint(-(2**31), 2**31, size=x.shape[-1], dtype=np.int64)
    total = tf.reduce_sum(rises * tf.constant(weights, tf.int32), axis=-1)
    return tf.math.floordiv(total, 2**12)  # the sum wraps around: its high bits are the well-mixed ones
