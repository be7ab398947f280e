"""The losses of gates as pure functions, in float32: the paper's (section 4, appendices A and F), and later ones."""

import tensorflow as tf

from tf_moe import checks
from tf_moe.ops.chosen_probability import top_k_probability
from tf_moe.ops.masks import mask_rows

__all__ = ["cv_squared", "importance", "smooth_load", "switch_loss", "threshold_loss", "z_loss"]


def cv_squared(x: tf.Tensor) -> tf.Tensor:
    """Squared coefficient of variation: population variance over squared mean.

    Args:
        x: Tensor of any shape, cast to float32. Usually importance or load, `(E,)`.

    Returns:
        A float32 scalar, 0 where all entries are equal and also where their mean is 0 (an empty batch), with
        finite gradients in both cases.

    Example:

    >>> float(tf_moe.losses.cv_squared([1.0, 1.0, 4.0]))  # mean 2, variance 2
    0.5

    Reference: section 4, equation 7, of Shazeer et al. (2017).
    """
    x = tf.cast(x, tf.float32)
    # It does not depend on the unit. In this one no square leaves the range of float32.
    x = tf.math.divide_no_nan(x, tf.stop_gradient(tf.reduce_max(tf.abs(x))))
    mean = tf.reduce_mean(x)
    variance = tf.reduce_mean(tf.square(x - mean))
    return tf.math.divide_no_nan(variance, tf.square(mean))


def importance(gates: tf.Tensor) -> tf.Tensor:
    """Importance of each expert: the batchwise sum of its gate values.

    Args:
        gates: Gate values `(T, E)`, zero where an expert is not chosen or a token is masked.

    Returns:
        Float32 `(E,)`.

    Raises:
        ValueError: If gates are no matrix.

    Example:

    >>> tf_moe.losses.importance([[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]]).numpy()
    array([0.75, 0.5 , 0.75], dtype=float32)

    Reference: section 4, equation 6, of Shazeer et al. (2017).
    """
    gates = tf.cast(gates, tf.float32)
    if gates.shape.rank not in (None, 2):
        raise ValueError(f"gates must be of shape (T, E). Received: gates of shape {gates.shape}.")
    return tf.reduce_sum(gates, axis=0)


def smooth_load(
    clean_logits: tf.Tensor,
    noisy_logits: tf.Tensor,
    noise_stddev: tf.Tensor,
    k: int,
    mask: tf.Tensor | None = None,
) -> tf.Tensor:
    """Differentiable estimate of the number of tokens each expert receives.

    For each token and expert it is the probability that the expert is among the k chosen when its own noise is drawn
    again and the noise of all others stays; summed over the tokens.

    Args:
        clean_logits: Gate logits without noise, `(T, E)`.
        noisy_logits: The same with the noise of this step, `(T, E)`.
        noise_stddev: Standard deviation of that noise, `(T, E)`, positive.
        k: Number of experts chosen for a token, 1 to E. With k = E all are chosen and every probability is 1.
        mask: Optional bool `(T,)`; tokens where it is False count nothing, and may be NaN.

    Returns:
        Float32 `(E,)`.

    Raises:
        ValueError: If k is not an integer in 1..E, or shapes do not fit or leave E open.

    Example:

    >>> clean, noisy = tf.zeros([2, 3]), tf.constant([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    >>> tf_moe.losses.smooth_load(clean, noisy, tf.ones([2, 3]), k=1).shape
    TensorShape([3])

    Reference: appendix A of Shazeer et al. (2017).
    """
    clean_logits, noisy_logits, noise_stddev = (
        tf.cast(x, tf.float32) for x in (clean_logits, noisy_logits, noise_stddev)
    )
    checks.same_shape(clean_logits=clean_logits, noisy_logits=noisy_logits, noise_stddev=noise_stddev)
    num_experts = _num_experts("clean_logits", clean_logits)
    hint = f" in 1..{num_experts}, the number of experts"
    k = checks.integer("k", k, hint=hint)
    if k > num_experts:
        raise ValueError(f"k must be a positive integer{hint}. Received: k={k!r}.")
    if mask is not None:
        mask = checks.mask(mask, clean_logits)
        # Before they meet: of a NaN the gradient would be one too, whatever the weight.
        clean_logits, noisy_logits = mask_rows(clean_logits, mask), mask_rows(noisy_logits, mask)
        noise_stddev = mask_rows(noise_stddev, mask, 1.0)
    highest = tf.math.top_k(noisy_logits, min(k + 1, num_experts)).values
    probability = top_k_probability(clean_logits, noisy_logits, noise_stddev, highest, k)
    if mask is not None:
        probability = mask_rows(probability, mask)
    return tf.reduce_sum(probability, axis=0)


def threshold_loss(
    scores: tf.Tensor, thresholds: tf.Tensor, chosen: tf.Tensor, mask: tf.Tensor | None = None
) -> tf.Tensor:
    """Loss under which thresholds learn to let pass what a batchwise choice has chosen.

    ```
    sum_t sum_i (M_threshold(t, i) - chosen(t, i)) * (scores(t, i) - thresholds(i)) / number of tokens
    ```

    It is never negative, and 0 where both masks agree. The paper sums over tokens; the mean makes it independent of the
    size of the batch, as the loss of the task is.

    Args:
        scores: Gate values before any choice, `(T, E)`.
        thresholds: `(E,)`.
        chosen: Bool `(T, E)`, the batchwise choice.
        mask: Optional bool `(T,)`; tokens where it is False count nothing, and may be NaN.

    Returns:
        A float32 scalar, 0 for a batch without tokens.

    Raises:
        ValueError: If shapes do not fit, or leave E open.

    Example:

    >>> scores, thresholds = tf.constant([[0.75, 0.25], [0.5, 0.5]]), tf.constant([0.25, 0.375])
    >>> chosen = tf.constant([[True, False], [False, True]])
    >>> float(tf_moe.losses.threshold_loss(scores, thresholds, chosen))  # token 1 passes expert 0's by 0.25
    0.125

    Reference: appendix F of Shazeer et al. (2017).
    """
    scores, thresholds = tf.cast(scores, tf.float32), tf.cast(thresholds, tf.float32)
    chosen = tf.cast(chosen, tf.float32)
    checks.same_shape(scores=scores, chosen=chosen)
    if not thresholds.shape.is_compatible_with([_num_experts("scores", scores)]):
        raise ValueError(
            f"thresholds must be (E,) where scores are (T, E). Received: thresholds {thresholds.shape}, "
            f"scores {scores.shape}."
        )
    if mask is not None:
        mask = checks.mask(mask, scores)
        scores = mask_rows(scores, mask)
    above = tf.cast(scores > thresholds, tf.float32)
    loss = tf.reduce_sum((above - chosen) * (scores - thresholds), axis=-1)
    return _mean(loss, mask)


def switch_loss(load: tf.Tensor, probabilities: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
    """Balance loss of the Switch Transformer: E * sum_i f_i P_i.

    f_i is the share of all assignments that expert i has, without gradient, and P_i its mean probability over the
    tokens. It is 1 where either is even, and E where all tokens surely go to one expert.

    Args:
        load: Number of tokens assigned to each expert, `(E,)`.
        probabilities: Of every expert, for every token, `(T, E)`.
        mask: Optional bool `(T,)`; tokens where it is False count nothing, and may be NaN. (They should not count in
            `load`.)

    Returns:
        A float32 scalar, 0 for a batch without tokens.

    Raises:
        ValueError: If shapes do not fit, or leave E open.

    Example:

    >>> float(tf_moe.losses.switch_loss([3.0, 1.0], [[0.6, 0.4], [0.9, 0.1]]))  # 2 * (3/4 * 3/4 + 1/4 * 1/4)
    1.25

    Reference: section 2.2, equations 4 to 6, of Fedus et al. (2021), Switch Transformers.
    """
    load, probabilities = tf.stop_gradient(tf.cast(load, tf.float32)), tf.cast(probabilities, tf.float32)
    num_experts = _num_experts("probabilities", probabilities)
    if not load.shape.is_compatible_with([num_experts]):
        raise ValueError(
            "load must be (E,) where probabilities are (T, E). "
            f"Received: load {load.shape}, probabilities {probabilities.shape}."
        )
    if mask is not None:
        mask = checks.mask(mask, probabilities)
        probabilities = mask_rows(probabilities, mask)
    share = tf.math.divide_no_nan(load, tf.reduce_sum(load))
    return num_experts * _mean(tf.reduce_sum(probabilities * share, axis=-1), mask)


def z_loss(logits: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
    """Router z-loss: the mean over the tokens of logsumexp(logits)^2.

    It keeps logits small, where a softmax is exact. A usual weight is 0.001.

    Args:
        logits: `(..., E)`.
        mask: Optional bool, shaped as the leading dimensions; tokens where it is False count nothing, and may be NaN.

    Returns:
        A float32 scalar, 0 for a batch without tokens.

    Raises:
        ValueError: If the mask has another shape.

    Example:

    >>> float(tf_moe.losses.z_loss(tf.math.log([[1.0, 2.0, 5.0], [0.5, 0.25, 0.25]])))  # (log(8)^2 + log(1)^2) / 2
    2.16...

    Reference: section 3.3, equation 5, of Zoph et al. (2022), ST-MoE.
    """
    logits = tf.cast(logits, tf.float32)
    if mask is not None:
        mask = checks.mask(mask, logits)
        logits = mask_rows(logits, mask)
    return _mean(tf.square(tf.reduce_logsumexp(logits, axis=-1)), mask)


def _num_experts(name: str, values: tf.Tensor) -> int:
    """E of values `(T, E)`; raises ValueError for another rank, or where E is not known."""
    if values.shape.rank != 2 or values.shape[1] is None:
        raise ValueError(f"{name} must be (T, E) with a static E. Received: {name} of shape {values.shape}.")
    return values.shape[1]


def _mean(values: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """Mean over the unmasked tokens, 0 where there are none; the values of masked ones must be finite too."""
    counted = tf.ones_like(values) if mask is None else tf.cast(mask, values.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(values * counted), tf.reduce_sum(counted))
