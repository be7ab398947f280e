"""Batches of rows that are filled with whole sentences."""

import numpy as np
import tensorflow as tf

from tf_moe import checks
from tf_moe.text.pipeline import sentence_pieces, weighted
from tf_moe.text.token_cache import TokenCache


def packed_batches(
    cache: TokenCache,
    batch_size: int,
    steps: int,
    *,
    sentences_per_row: int | None = None,
    shuffle_buffer: int = 0,
    seed: int | None = None,
    process: tuple[int, int] = (0, 1),
    drop_remainder: bool = False,
) -> tf.data.Dataset:
    """Rows of one width, filled with whole sentences one after another, the rest padding: for corpora of real size.

    All batches have one shape, as a mesh needs them, with little padding, and no sentence is cut but those longer
    than a row. A sentence goes, in the order of the stream, to the row with the least room that is enough, among those
    of its block of some thousand sentences; with news 3.3 % is padding in rows of 64, 1.6 % in rows of 128.

    A word is predicted from its sentence and from the sentences before it in the row, and where a sentence begins
    tells how long it may be. So that neither flatters a perplexity, evaluate with `sentences_per_row=1`: each sentence
    by itself.

    Args:
        cache: What `cache_tokens` returns.
        batch_size: Rows, B.
        steps: Tokens of a row, T. A longer sentence goes on in a further row, which begins with the last token of the
            row before instead of `</s>`.
        sentences_per_row: The most that a row may hold. Default None: as many as fit.
        shuffle_buffer: Rows held at a time to draw from; the cache's blocks, too, come in another order in every
            epoch. Default 0: the order of the text, by and large.
        seed: Makes a new dataset repeat the orders, epoch for epoch, where `tf.random.set_seed` had the same seed too,
            or none. Default None: they differ.
        process: Number of this process and how many there are, where each reads a part of its own. Default (0, 1).
        drop_remainder: For training: exactly N // (B * T) batches an epoch for the cache's N tokens, a number the
            dataset knows. The few rows left over are dropped, different ones in every epoch if rows are shuffled. With
            n processes each gives an n-th of that; a process with too few rows of its own, as may be with a cache of
            few blocks, goes on with those of all, from the first. Default False: every token once, the last batch
            filled up with padding; the number of batches is not known before.

    Returns:
        A dataset of (inputs, targets, weights), each [B, T], int32, int32, float32, as `sentence_batches` gives
        them: the input of each sentence's first word is `</s>`, padding is id 0 with weight 0.

    Raises:
        ValueError: `batch_size`, `steps` or `sentences_per_row` no integer of at least 1, `shuffle_buffer` no
            integer of at least 0, `seed` neither an integer nor None, or `process` no such pair.
        TypeError: `cache` is no TokenCache.

    Example:
        >>> cache = tf_moe.text.cache_tokens(corpus.train, vocabulary, "cache/train")
        >>> train = tf_moe.text.packed_batches(cache, 2, 16, shuffle_buffer=10_000, seed=1, drop_remainder=True)
        >>> test = tf_moe.text.packed_batches(cache, 2, 16, sentences_per_row=1)
        >>> next(iter(test))[0].numpy()[0]  # a sentence, then padding
        array([...0, 0, 0, 0, 0, 0, 0, 0, 0], dtype=int32)
    """
    checks.instance("cache", cache, TokenCache, "Pass what cache_tokens returns.")
    batch_size, steps = checks.integer("batch_size", batch_size), checks.integer("steps", steps)
    most = checks.integer("sentences_per_row", steps if sentences_per_row is None else sentences_per_row)
    shuffle_buffer, seed = checks.integer("shuffle_buffer", shuffle_buffer, least=0), checks.seed(seed)

    def rows(process, shuffle):
        blocks = cache.blocks(shuffle=shuffle, seed=seed, process=process)
        packed = blocks.map(lambda lines: _pack(lines, steps, most), num_parallel_calls=tf.data.AUTOTUNE).unbatch()
        return packed.shuffle(shuffle_buffer, seed=seed, reshuffle_each_iteration=True) if shuffle else packed

    chosen = rows(process, shuffle=shuffle_buffer > 0)
    if not drop_remainder:
        return weighted(chosen.batch(batch_size), batch_size)
    if process[1] > 1:  # processes have to give as many batches as one another, and parts differ by some blocks
        # Of all, since one may have no block; unshuffled, which uses up no seed.
        chosen = chosen.concatenate(rows((0, 1), shuffle=False).repeat())
    # At least that many, for a row holds T tokens at most.
    count = cache.num_tokens // (batch_size * steps * process[1])
    batches = chosen.batch(batch_size, drop_remainder=True).take(count)
    return weighted(batches.apply(tf.data.experimental.assert_cardinality(count)), batch_size)


def _pack(lines: tf.RaggedTensor, steps: int, most: int) -> tf.Tensor:
    """Pairs of input and target [rows, T, 2] of the sentences of a block."""
    pieces = sentence_pieces(lines, steps)
    # In Python, a microsecond or two for each sentence: TensorFlow has no operation for it, and its loops are slower.
    positions, num_rows = tf.numpy_function(
        lambda lengths: _positions(lengths, steps, most), [pieces.row_lengths()], (tf.int64, tf.int64), stateful=False
    )
    rows = tf.scatter_nd(tf.reshape(positions, [-1, 1]), pieces.flat_values, [num_rows * steps, 2])
    return tf.reshape(rows, [-1, steps, 2])


def _positions(lengths: np.ndarray, steps: int, most: int) -> tuple[np.ndarray, np.int64]:
    """Where each token stands in the rows, which are one after another, and how many rows there are."""
    rows = {}  # by the room that they have, the (row, sentences in it) that are not full
    rooms = 0  # bit r is set where there is a row with room r
    starts, num_rows = [], 0
    for length in lengths.tolist():
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1  # the least that is
            row, held = rows[room].pop()
            if not rows[room]:
                rooms ^= 1 << room
        else:
            room, row, held = steps, num_rows, 0
            num_rows += 1
        starts.append(row * steps + steps - room)
        if room > length and held + 1 < most:
            rows.setdefault(room - length, []).append((row, held + 1))
            rooms |= 1 << (room - length)
    # Token by token: the start of its sentence, and its place there.
    before = np.cumsum(lengths) - lengths
    positions = np.arange(lengths.sum()) + np.repeat(np.array(starts, np.int64) - before, lengths)
    return positions.astype(np.int64), np.int64(num_rows)
