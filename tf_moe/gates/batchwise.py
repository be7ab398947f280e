"""Tokens chosen by experts over the whole batch, shared by several gates."""

import tensorflow as tf

from tf_moe.mesh.shards import EXPERT, current_shards
from tf_moe.ops.xla import compiled_by_xla


def batchwise_choice(scores: tf.Tensor, k: int, mask: tf.Tensor | None = None) -> tf.Tensor:
    """For each expert its m = k T / E highest values over the batch of T unmasked tokens, m rounded, at least 1.

    Where values tie, expert i prefers tokens from number i * m on, around the unmasked ones: so an untrained gate gives
    every token k experts rather than the first m tokens all of them.

    Args:
        scores: `(T, E)`, not negative.
        k: Mean number of experts for a token.
        mask: Optional bool `(T,)`.

    Returns:
        Bool `(T, E)`, without gradient.
    """
    num_experts = scores.shape[-1]
    scores, shards = tf.transpose(tf.stop_gradient(scores)), current_shards()  # (E, T)
    if shards and mask is not None:
        mask = shards.whole(mask)
    size = tf.shape(scores)[1]
    number = tf.range(size)  # of each token
    unmasked = size
    if mask is not None:
        number = tf.cumsum(tf.cast(mask, tf.int32), exclusive=True)  # among the unmasked ones
        unmasked = tf.math.count_nonzero(mask, dtype=tf.int32)
        scores = tf.where(tf.expand_dims(mask, 0), scores, -1.0)
    m = tf.cast(tf.round(k * tf.cast(unmasked, tf.float32) / num_experts), tf.int32)
    m = tf.clip_by_value(m, tf.minimum(1, unmasked), unmasked)
    first = tf.math.floormod(tf.range(num_experts) * m, tf.maximum(unmasked, 1))  # number of each expert's first
    first = tf.reduce_sum(tf.cast(tf.expand_dims(number, 0) < tf.expand_dims(first, 1), tf.int32), axis=1)
    turn = tf.math.floormod(tf.expand_dims(first, 1) + tf.expand_dims(tf.range(size), 0), tf.maximum(size, 1))
    if shards:  # an all-to-all: every device chooses for its experts, among the tokens of all
        scores, turn = shards.relayout(scores, {0: EXPERT}), shards.relayout(turn, {0: EXPERT})
    in_turn = tf.gather(scores, turn, batch_dims=1)  # (E, T): each expert's tokens as it prefers them among equals
    if compiled_by_xla() or shards:  # where m cannot be a shape
        order = tf.argsort(in_turn, direction="DESCENDING", stable=True)
        rank = tf.argsort(tf.gather(turn, order, batch_dims=1))  # the inverse of that permutation
        if not shards:
            return tf.transpose(rank < m)
        # Laid out, or DTensor would sort as the tokens are split that come of it, which it cannot. Whole, for with more
        # replicas than shards what it makes of a transposed one is wrong (TensorFlow 2.21).
        rank = shards.relayout(rank, {0: EXPERT})
        return shards.whole(tf.transpose(rank < m))
    best = tf.math.top_k(in_turn, m).indices  # of equals the first; never a masked token, whose -1 is below all others
    token = tf.gather(turn, best, batch_dims=1)
    expert = tf.zeros_like(token) + tf.expand_dims(tf.range(num_experts), 1)
    return tf.scatter_nd(tf.stack([token, expert], axis=-1), tf.ones_like(token, tf.bool), [size, num_experts])
