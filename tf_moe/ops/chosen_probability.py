"""The probability that an expert is chosen: what the smooth estimate of the load is a sum of."""

import tensorflow as tf

# Below this a noise of standard deviation is treated as this. It only keeps 0/0 out of the load estimate:
# softplus reaches it near logits of -14, where the estimate is a step function already.
SMALLEST_STDDEV = 1e-6


def top_k_probability(
    clean_logits: tf.Tensor, noisy_logits: tf.Tensor, noise_stddev: tf.Tensor, highest: tf.Tensor, k: int
) -> tf.Tensor:
    """P(x, i) of appendix A: the probability that expert i stays or comes among the k chosen, its noise redrawn.

    Args:
        clean_logits: `(..., E)`.
        noisy_logits: `(..., E)`.
        noise_stddev: `(..., E)`.
        highest: The k + 1 largest of `noisy_logits` in descending order, `(..., k + 1)` (or all E where k = E).
        k: Number of experts chosen.

    Returns:
        `(..., E)`, between 0 and 1.

    Reference: appendix A of Shazeer et al. (2017).
    """
    if k >= clean_logits.shape[-1]:
        return tf.ones_like(clean_logits)
    # The k-th highest with i left out: one of the chosen is compared with the best that was not chosen, and the
    # others with the worst that was.
    best_outside, worst_inside = highest[..., k : k + 1], highest[..., k - 1 : k]
    threshold = tf.where(noisy_logits > best_outside, best_outside, worst_inside)
    return probability_above(threshold, clean_logits, noise_stddev)


def probability_above(threshold: tf.Tensor, mean: tf.Tensor, stddev: tf.Tensor) -> tf.Tensor:
    """The probability that a normal number is above the threshold, all three `(..., E)` or broadcast to it."""
    # Not a quotient: where logits are huge its gradient is 0 * inf.
    precision = tf.math.reciprocal(tf.maximum(stddev, SMALLEST_STDDEV))
    return 0.5 * tf.math.erfc((mean - threshold) * precision * -(2**-0.5))
