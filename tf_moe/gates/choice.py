"""The choice of k out of many logits, shared by the gates that choose for each token."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_moe.gates.several import products
from tf_moe.mesh.shards import current_shards
from tf_moe.ops.chosen import read_at, top_k
from tf_moe.ops.chosen_probability import top_k_probability
from tf_moe.ops.masks import mask_rows
from tf_moe.ops.noise import Noise
from tf_moe.ops.noisy_choice import noisy_top_k
from tf_moe.ops.ties import code_tokens, top_k_spread
from tf_moe.ops.xla import compiled_by_xla

NORMALIZE = ("chosen", "all")  # over which experts weights are a softmax

# Number of experts from which it takes less time to compute a second time in the backward pass than to keep matrices
# `(T, E)`: with 256 it takes a tenth more, with 1024 a seventh less, with 4096 a fifth less, and 0.65 of the memory.
ONLY_LOGITS_FROM = 1024


def keeps_only_logits(num_experts: int, k: int, normalize: str) -> bool:
    """Whether `choose_noisy` keeps no matrices `(T, E)` but its logits, outside of XLA and a mesh."""
    return num_experts >= ONLY_LOGITS_FROM and k < num_experts and not _needs_all(k, normalize)


def choose_by_kernels(
    inputs: tf.Tensor,
    kernels: Sequence[keras.Variable],
    k: int,
    normalize: str,
    noise: Noise | None = None,
    mask: tf.Tensor | None = None,
    gate_id: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """The choice of tokens times W_g, and with noise W_noise.

    Args:
        inputs: `(T, D)`.
        kernels: W_g, and with noise W_noise too, each `(D, E)`, or `(G, D, E)` with `gate_id`.
        k: Number of experts chosen.
        normalize: See `softmax_of_chosen`.
        noise: Of which the numbers come, in training; or None.
        mask: Optional bool `(T,)`.
        gate_id: Optional int32 `(T,)`, see `products`.

    Returns:
        clean_logits: `(T, E)`.
        expert_index: Int32 `(T, k)`.
        weights: `(T, k)`, zero for masked tokens.
        load: With noise the estimate `(E,)`, see `choose_noisy`; else None.

    Reference: section 2.1 and appendix A of Shazeer et al. (2017).
    """
    clean_logits, *noise_logits = products(inputs, kernels, gate_id)
    if noise is None:
        index, weights = choose(clean_logits, code_tokens(inputs), k, normalize)
        load = None
    else:
        index, weights, load = choose_noisy(clean_logits, *noise_logits, noise, k, normalize, mask)
    return clean_logits, index, mask_rows(weights, mask), load


def choose_noisy(
    clean_logits: tf.Tensor,
    noise_logits: tf.Tensor,
    noise: Noise,
    k: int,
    normalize: str = "chosen",
    mask: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The k experts with the highest noisy logits, as in training.

    Args:
        clean_logits: `(T, E)`.
        noise_logits: `(T, E)`; the noise has standard deviation softplus of this.
        noise: Of which the numbers come.
        k: Number of experts chosen.
        normalize: See `softmax_of_chosen`.
        mask: Optional bool `(T,)`; masked tokens count nothing in the load.

    Returns:
        expert_index: Int32 `(T, k)`, best first.
        weights: `(T, k)`, see `softmax_of_chosen`; of masked tokens too.
        load: `(E,)`, the sum over the tokens of the probability of each expert to be chosen if its noise were drawn
            again.
    """
    only_logits = keeps_only_logits(clean_logits.shape[-1], k, normalize)
    if not only_logits or current_shards() or compiled_by_xla():  # XLA merges the passes by itself
        drawn = noise.whole(tf.shape(clean_logits))
        index, weights, probability = choose_noisy_by_token(clean_logits, noise_logits, drawn, k, normalize)
        return index, weights, _sum_over_tokens(probability, mask)
    index, highest, load = noisy_top_k(clean_logits, noise_logits, noise, k, mask)
    return index, tf.nn.softmax(highest, axis=-1), load


def choose_noisy_by_token(
    clean_logits: tf.Tensor, noise_logits: tf.Tensor, noise: tf.Tensor, k: int, normalize: str = "chosen"
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`choose_noisy` over whole matrices, with given numbers; it returns each token's part of the load.

    Args:
        clean_logits: `(T, E)`.
        noise_logits: `(T, E)`; the noise has standard deviation softplus of this.
        noise: Standard normal numbers `(T, E)`.
        k: Number of experts chosen.
        normalize: See `softmax_of_chosen`.

    Returns:
        expert_index, weights: See `choose_noisy`.
        probability: `(T, E)`, of each expert to be chosen if its noise were drawn again; its sum is the load estimate.

    Reference: section 2.1 and appendix A of Shazeer et al. (2017).
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
    if _needs_all(chosen_logits.shape[-1], normalize):
        return tf.exp(chosen_logits - tf.reduce_logsumexp(all_logits, axis=-1, keepdims=True))
    return tf.nn.softmax(chosen_logits, axis=-1)


def _needs_all(k, normalize):
    return normalize == "all" or k == 1


def _sum_over_tokens(values: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """Sum of the rows `(T, E)` of unmasked tokens, `(E,)`; the rows of masked ones must be finite too."""
    if mask is None:
        return tf.reduce_sum(values, axis=0)
    # As a product, since the masked matrix would be one more of that size to write and read.
    return tf.squeeze(tf.matmul(tf.expand_dims(tf.cast(mask, values.dtype), 0), values), 0)
