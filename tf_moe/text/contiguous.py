"""Batches of windows cut from one long stream of tokens."""

import tensorflow as tf

from tf_moe import checks
from tf_moe.text.pipeline import encoded_lines, next_token_pairs, weighted
from tf_moe.text.text import Text
from tf_moe.text.vocabulary import Vocabulary


def contiguous_batches(
    text: Text,
    vocabulary: Vocabulary,
    batch_size: int,
    steps: int,
    *,
    shuffle_buffer: int = 0,
    seed: int | None = None,
    drop_remainder: bool = False,
    num_tokens: int | None = None,
) -> tf.data.Dataset:
    """The text as one stream of lines, each with `</s>`, cut every `steps` tokens: for stateless models.

    Each window goes on where the one before it ended, in the next row; a model starts each with a fresh
    state. A blank line is one `</s>`, so WikiText-2 has the 2,088,628 / 217,646 / 245,569 tokens that
    published perplexities count.

    Args:
        text: What to read, as a stream: it may be larger than memory.
        vocabulary: Gives the ids.
        batch_size: Rows, B.
        steps: Tokens of a window, T.
        shuffle_buffer: Windows held at a time to draw from; every epoch has another order. Default 0: the
            order of the text.
        seed: Makes a new dataset repeat the orders, epoch for epoch, where `tf.random.set_seed` had the same seed too,
            or none. Default None: they differ.
        drop_remainder: For training: leave out the last window and the last batch if they are not full.
            Default False: fill them up with padding of weight 0, so that an evaluation counts every token.
        num_tokens: Length of the text, from which the dataset tells its number of batches. It is
            `vocabulary.num_tokens` for the text that the vocabulary was built from, and
            `vocabulary.count_tokens(text)` for another. Default None: the number is not known before the first
            epoch ends, and Keras warns there that the data ran out.

    Returns:
        A dataset of (inputs, targets, weights), each [B, T], int32, int32, float32. An input is the token
        before its target, the first of the text `</s>`, so every token is a target exactly once. Weights are
        1 for tokens and 0 for padding. An epoch has N / (B * T) batches for N tokens, rounded down with
        `drop_remainder` and up without. The exact mean over all tokens is what
        `compile(weighted_metrics=[...])` reports of the cross-entropy; a loss with
        `reduction="mean_with_sample_weight"` is exact in each batch.

    Raises:
        ValueError: `batch_size` or `steps` no integer of at least 1, `shuffle_buffer` or `num_tokens` no integer
            of at least 0, or `seed` neither an integer nor None.
        TypeError: `text` is no Text, or `vocabulary` no Vocabulary.
        tf.errors.FailedPreconditionError: on iteration, where `num_tokens` is wrong.
        tf.errors.InvalidArgumentError: on iteration, where reading fails; with the ValueError's message.

    Example:
        >>> train = tf_moe.text.contiguous_batches(
        ...     corpus.train,
        ...     vocabulary,
        ...     batch_size=2,
        ...     steps=4,
        ...     shuffle_buffer=65_536,
        ...     drop_remainder=True,
        ...     num_tokens=vocabulary.num_tokens,
        ... )
        >>> length = vocabulary.count_tokens(corpus.validation)
        >>> validation = tf_moe.text.contiguous_batches(corpus.validation, vocabulary, 2, 4, num_tokens=length)
        >>> len(train), len(validation)
        (2, 3)
    """
    batch_size, steps = checks.integer("batch_size", batch_size), checks.integer("steps", steps)
    shuffle_buffer, seed = checks.integer("shuffle_buffer", shuffle_buffer, least=0), checks.seed(seed)
    if num_tokens is not None:
        num_tokens = checks.integer("num_tokens", num_tokens, least=0)
    tokens = encoded_lines(text, vocabulary).map(next_token_pairs)
    windows = tokens.rebatch(steps, drop_remainder=drop_remainder)
    if shuffle_buffer:
        windows = windows.shuffle(shuffle_buffer, seed=seed, reshuffle_each_iteration=True)
    batches = weighted(windows.padded_batch(batch_size, [steps, 2], drop_remainder=drop_remainder), batch_size)
    if num_tokens is None:
        return batches
    full, rest = divmod(num_tokens, batch_size * steps)
    count = full if drop_remainder else full + (rest > 0)
    return batches.apply(tf.data.experimental.assert_cardinality(count))
