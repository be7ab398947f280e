"""Batches of sentences, those of like length together."""

from collections.abc import Sequence

import tensorflow as tf

from tf_moe import checks
from tf_moe.text.pipeline import encoded_lines, sentence_pieces, weighted
from tf_moe.text.text import Text
from tf_moe.text.vocabulary import Vocabulary


def sentence_batches(
    text: Text,
    vocabulary: Vocabulary,
    batch_size: int,
    *,
    boundaries: Sequence[int] = (*range(4, 65, 4), 96, 128, 256),
    max_length: int | None = None,
    shuffle_buffer: int = 0,
    seed: int | None = None,
) -> tf.data.Dataset:
    """One sentence a row: in go `</s>`, which begins it, and its tokens; out come its tokens and `</s>`.

    Every token of a line and its `</s>` is a target exactly once. Blank lines are no sentences and left out.

    Args:
        text: What to read, as a stream: it may be larger than memory.
        vocabulary: Gives the ids.
        batch_size: Rows, B. At the end of the text rows of padding fill up the last batch of each bucket.
        boundaries: Rising lengths (in tokens, `</s>` counted) that part the buckets: a batch holds sentences
            of at least one boundary and less than the next. With the default 7 % of a batch of news is
            padding.
        max_length: A longer sentence goes on in a further row, which begins with the last token of the row
            before instead of `</s>`. Default None: the longest sentence decides how much memory its batch
            takes.
        shuffle_buffer: Rows held at a time to draw from; every epoch has another order. Default 0: buckets
            are filled in the order of the text.
        seed: Makes a new dataset repeat the orders, epoch for epoch, where `tf.random.set_seed` had the same seed too,
            or none. Default None: they differ.

    Returns:
        A dataset of (inputs, targets, weights), each [B, T], int32, int32, float32; T is the longest row of
        the batch. Padding is id 0 in inputs, as `keras.layers.Embedding(mask_zero=True)` expects, and in
        targets, with weight 0. The number of batches is not known before the first epoch ends: Keras warns
        there that the data ran out, unless one counts them and applies `tf.data.experimental.assert_cardinality`.
        Batches differ in T: `tf_moe.models.Perplexity` counts every token once, while Keras's metrics take the mean of
        a row first; a loss with `reduction="mean_with_sample_weight"` is exact in each batch.

    Raises:
        ValueError: `batch_size`, `max_length` or one of `boundaries` no integer of at least 1, `shuffle_buffer` no
            integer of at least 0, `seed` neither an integer nor None, or `boundaries` not rising.
        TypeError: `text` is no Text, or `vocabulary` no Vocabulary.

    Example:
        >>> train = tf_moe.text.sentence_batches(corpus.train, vocabulary, 64, shuffle_buffer=10_000)
        >>> next(iter(train))[0].shape[0]
        64
    """
    batch_size, seed = checks.integer("batch_size", batch_size), checks.seed(seed)
    shuffle_buffer = checks.integer("shuffle_buffer", shuffle_buffer, least=0)
    if max_length is not None:
        max_length = checks.integer("max_length", max_length)
    boundaries = checks.rising("boundaries", boundaries)

    blocks = encoded_lines(text, vocabulary).map(lambda lines: sentence_pieces(lines, max_length))
    # tf.identity makes a tensor of a ragged tensor's one row, which could not be padded.
    rows = blocks.unbatch().map(tf.identity)
    if shuffle_buffer:
        rows = rows.shuffle(shuffle_buffer, seed=seed, reshuffle_each_iteration=True)
    batches = rows.bucket_by_sequence_length(
        lambda pairs: tf.shape(pairs)[0],
        bucket_boundaries=boundaries,
        bucket_batch_sizes=[batch_size] * (len(boundaries) + 1),
    )
    return weighted(batches, batch_size)
