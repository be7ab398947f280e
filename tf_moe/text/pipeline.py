"""What all kinds of batches share: lines to ids, inputs one token behind targets, padding and weights."""

import tensorflow as tf

from tf_moe import checks
from tf_moe.text.iterated import iterated
from tf_moe.text.text import Text, check_text
from tf_moe.text.vocabulary import Vocabulary


def encoded_lines(text: Text, vocabulary: Vocabulary) -> tf.data.Dataset:
    """Blocks of encoded lines, RaggedTensor [lines, None] of int32; each line ends in `</s>`."""
    check_text(text)
    checks.instance("vocabulary", vocabulary, Vocabulary, "Pass what build_vocabulary or Vocabulary.load returns.")
    # One iterator reads every kind of file: tf.data itself has no xz. It gives blocks, not lines, so that
    # Python runs once for tens of thousands of tokens.
    lines = iterated(text.blocks, tf.TensorSpec([None], tf.string))
    return lines.map(vocabulary.encode, num_parallel_calls=tf.data.AUTOTUNE)


def next_token_pairs(lines: tf.RaggedTensor) -> tf.Tensor:
    """Inputs and targets, [tokens, 2]: each token after the one before it, the first after `</s>`.

    Since the line before a block ended in `</s>`, blocks join to one stream.
    """
    targets = lines.flat_values
    inputs = tf.concat([[Vocabulary.END], targets], axis=0)[:-1]
    return tf.stack([inputs, targets], axis=-1)


def sentence_pieces(lines: tf.RaggedTensor, max_length: int | None) -> tf.RaggedTensor:
    """Pairs of input and target [rows, None, 2] of encoded lines, at most `max_length` in a row."""
    lines = tf.ragged.boolean_mask(lines, lines.row_lengths() > 1)  # a blank line has its </s> only
    splits = lines.row_splits
    if max_length is not None:
        starts = tf.ragged.range(splits[:-1], splits[1:], max_length).flat_values
        splits = tf.concat([starts, splits[-1:]], axis=0)
    return tf.RaggedTensor.from_row_splits(next_token_pairs(lines), splits)


def weighted(batches: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    """Turns pairs [rows, T, 2] into (inputs, targets, weights) [batch_size, T]; missing rows are padding."""

    def separate(pairs):
        pairs = tf.pad(pairs, [[0, batch_size - tf.shape(pairs)[0]], [0, 0], [0, 0]])
        pairs = tf.ensure_shape(pairs, [batch_size, None, 2])
        inputs, targets = tf.unstack(pairs, axis=-1)
        return inputs, targets, tf.cast(targets != Vocabulary.PAD, tf.float32)

    return batches.map(separate, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
