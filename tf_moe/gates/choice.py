"""The choice of k out of many logits, shared by the gates that choose for each token."""

import tensorflow as tf

from tf_moe.ops.chosen import read_at, top_k
from tf_moe.ops.chosen_probability import top_k_probability
from tf_moe.ops.ties import top_k_spread

NORMALIZE = ("chosen", "all")


def check_normalize(value: str) -> str:
    """The value; raises ValueError unless it says over which experts weights are a softmax."""
    if value not in NORMALIZE:
        raise ValueError(f"normalize must be one of {NORMALIZE}. Received: normalize={value!r}.")
    return value


def choose_noisy(
    clean_logits: tf.Tensor, noise_logits: tf.Tensor, noise: tf.Tensor, k: int, normalize: str = "chosen"
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The k experts with the highest noisy logits, as in training.

    Args:
        clean_logits: `(T, E)`.
        noise_logits: `(T, E)`; the noise has standard deviation softplus of this.
        noise: Standard normal numbers `(T, E)`.
        k: Number of experts chosen.
        normalize: See `softmax_of_chosen`.

    Returns:
        expert_index: Int32 `(T, k)`, best first.
        weights: `(T, k)`, see `softmax_of_chosen`.
        probability: `(T, E)`, of each expert to be chosen if its noise were drawn again; its sum is the load estimate.
    """
    stddev = tf.math.softplus(noise_logits)
    noisy_logits = clean_logits + noise * stddev
    highest, index = top_k(noisy_logits, min(k + 1, clean_logits.shape[-1]))
    probability = top_k_probability(clean_logits, noisy_logits, stddev, highest, k)
    return index[:, :k], softmax_of_chosen(highest[:, :k], noisy_logits, normalize), probability


def choose(
    clean_logits: tf.Tensor, token_code: tf.Tensor, k: int, normalize: str = "chosen"
) -> tuple[tf.Tensor, tf.Tensor]:
    """The k experts with the highest logits, ties spread over the experts; deterministic, as at evaluation.

    Returns:
        expert_index: Int32 `(T, k)`, best first.
        weights: `(T, k)`, see `softmax_of_chosen`.
    """
    index = top_k_spread(clean_logits, token_code, k)
    chosen = read_at(clean_logits, index)
    return index, softmax_of_chosen(chosen, clean_logits, normalize)


def softmax_of_chosen(chosen_logits: tf.Tensor, all_logits: tf.Tensor, normalize: str = "chosen") -> tf.Tensor:
    """Gate values of the chosen experts: the softmax over them alone, as the paper has it, or with "all" over all.

    For k = 1 the first would be the constant 1, which teaches the gate nothing: there it is the softmax over all.
    """
    if normalize == "all" or chosen_logits.shape[-1] == 1:
        return tf.exp(chosen_logits - tf.reduce_logsumexp(all_logits, axis=-1, keepdims=True))
    return tf.nn.softmax(chosen_logits, axis=-1)
