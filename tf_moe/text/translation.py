"""Batches of sentences and their translations, those of like length together."""

from collections.abc import Iterator, Sequence

import tensorflow as tf

from tf_moe import checks
from tf_moe.text.iterated import iterated
from tf_moe.text.parallel_text import ParallelText, check_parallel_texts
from tf_moe.text.pieces import Pieces

LENGTHS = (8, 16, 24, 32, 48, 64, 96)


def translation_batches(
    texts: ParallelText | Sequence[ParallelText],
    pieces: Pieces,
    tokens: int,
    *,
    lengths: Sequence[int] = LENGTHS,
    shuffle_buffer: int = 0,
    seed: int | None = None,
) -> tf.data.Dataset:
    """Batches of pairs in few shapes, each of which is compiled once.

    The lengths are those given, and every batch has about the same number of tokens. With pieces that have tokens for
    languages, a source begins with the token of the language to translate into, so that one model can learn several
    directions. Several texts are read in turn, 2048 pairs of each.

    Args:
        texts: One for each direction, as streams: they may be larger than memory.
        pieces: Gives the ids.
        tokens: Of a batch, on each side, padding included: a batch of length T has `tokens // T` rows, 1 at least. At
            the end of the texts rows of padding fill up the last batch of each length.
        lengths: The rising values of T, in ids: the longer side of a pair, with `</s>` and a language's token, decides.
            Pairs longer than the last are left out; `count_too_long` tells how many.
        shuffle_buffer: Pairs held at a time to draw from; every epoch has another order. With several texts some
            thousands for each mix them. Default 0: the order of the texts.
        seed: Makes a new dataset repeat the orders, epoch for epoch, where `tf.random.set_seed` had the same seed too,
            or none. Default None: they differ.

    Returns:
        A dataset of ((source, target inputs), target outputs, weights), each [B, T]; ids are int32, weights float32.
        Outputs are the target's pieces and `</s>`; inputs begin with the `</s>` that ends what was before,
        and are one behind. Weights are 1, and 0 for
        padding, which is id 0 everywhere. The number of batches is not known before the first epoch ends, see
        `sentence_batches`.

    Raises:
        ValueError: `tokens` or one of `lengths` no positive integer, `lengths` not rising, `shuffle_buffer` no integer
            of at least 0, `seed` neither an integer nor None; no texts, or one whose target language has no token while
            others have.
        TypeError: something else than a ParallelText, or `pieces` no Pieces.
        tf.errors.InvalidArgumentError: on iteration, where reading fails; with the ValueError's message.

    Example:
        >>> (text,) = tf_moe.text.ParallelCorpus.from_directory("pairs").parallel("train", "en", "fr")
        >>> pieces = tf_moe.text.build_pieces([text.source, text.target], 300)
        >>> train = tf_moe.text.translation_batches(text, pieces, 4096, shuffle_buffer=30_000)
        >>> (source, inputs), outputs, weights = next(iter(train))
    """
    tokens, seed = checks.integer("tokens", tokens), checks.seed(seed)
    shuffle_buffer = checks.integer("shuffle_buffer", shuffle_buffer, least=0)
    lengths = checks.rising("lengths", lengths)
    longest = lengths[-1]
    rows = _encoded_blocks(texts, pieces).map(lambda *sides: _rows(sides, longest)).unbatch()
    if shuffle_buffer:
        rows = rows.shuffle(shuffle_buffer, seed=seed, reshuffle_each_iteration=True)
    lengths = tf.constant(lengths, tf.int64)

    def bucket(row):
        """Which of the lengths the longer side of [2, longest] needs."""
        longer = tf.reduce_max(tf.math.count_nonzero(row, axis=1))
        return tf.math.count_nonzero(lengths < longer)

    # Not bucket_by_sequence_length: it pads every row by itself, which takes several times as long.
    batches = rows.group_by_window(
        bucket,
        lambda number, window: window.batch(_batch_size(lengths[number], tokens)).map(
            lambda rows: rows[:, :, : lengths[number]]
        ),
        window_size_func=lambda number: _batch_size(lengths[number], tokens),
    )
    return batches.map(lambda rows: _batch(rows, tokens), num_parallel_calls=tf.data.AUTOTUNE).prefetch(
        tf.data.AUTOTUNE
    )


def count_too_long(texts: ParallelText | Sequence[ParallelText], pieces: Pieces, longest: int = LENGTHS[-1]) -> int:
    """How many pairs are too long for `translation_batches` when the last of its `lengths` is `longest`.

    Reads the texts once.

    Raises:
        ValueError: `longest` no positive integer; no texts, or one whose target language has no token while others
            have.
        TypeError: something else than a ParallelText, or `pieces` no Pieces.
        tf.errors.InvalidArgumentError: where reading fails; with the ValueError's message.

    Example:
        >>> (text,) = tf_moe.text.ParallelCorpus.from_directory("pairs").parallel("train", "en", "fr")
        >>> pieces = tf_moe.text.build_pieces([text.source, text.target], 300)
        >>> tf_moe.text.count_too_long(text, pieces)
        0
    """
    longest = checks.integer("longest", longest)
    return sum(
        int(tf.reduce_sum(tf.cast(_row_lengths(sides) > longest, tf.int32))) for sides in _encoded_blocks(texts, pieces)
    )


def _encoded_blocks(texts, pieces: Pieces) -> tf.data.Dataset:
    """Blocks of sources and targets, RaggedTensors [pairs, None] of int32; both end in `</s>`."""
    texts = check_parallel_texts(texts)
    checks.instance("pieces", pieces, Pieces, "Pass what build_pieces or Pieces.load returns.")
    for text in texts:
        if pieces.languages and text.target_language not in pieces.languages:
            raise ValueError(
                f"The pieces have tokens for {list(pieces.languages)}. Received: a text with target_language="
                f"{text.target_language!r}. Pass its language to build_pieces too, or no languages there."
            )

    def encode(sources, targets, language):
        return pieces.encode(sources, language if pieces.languages else None), pieces.encode(targets)

    lines = tf.TensorSpec([None], tf.string)
    blocks = iterated(lambda: _in_turn(texts), lines, lines, tf.TensorSpec([], tf.string))
    return blocks.map(encode, num_parallel_calls=tf.data.AUTOTUNE)


def _in_turn(texts: list[ParallelText]) -> Iterator[tuple[list[str], list[str], str]]:
    """A block of each text and the language it is translated into, again and again until all have ended."""
    running = [(text.target_language, text.blocks()) for text in texts]
    while running:
        for language, blocks in list(running):
            if block := next(blocks, None):
                yield *block, language
            else:
                running.remove((language, blocks))


def _row_lengths(sides: Sequence[tf.RaggedTensor]) -> tf.Tensor:
    source, target = sides
    return tf.maximum(source.row_lengths(), target.row_lengths())


def _rows(sides: Sequence[tf.RaggedTensor], longest: int) -> tf.Tensor:
    """Source and target [pairs, 2, longest], padded, of the pairs that are not too long."""
    kept = _row_lengths(sides) <= longest
    dense = [tf.ragged.boolean_mask(side, kept).to_tensor(shape=[None, longest]) for side in sides]
    return tf.stack(dense, axis=1)


def _batch_size(length: tf.Tensor, tokens: int) -> tf.Tensor:
    return tf.maximum(tf.constant(1, tf.int64), tokens // tf.cast(length, tf.int64))


def _batch(rows: tf.Tensor, tokens: int) -> tuple:
    """((source, inputs), outputs, weights), each [B, T], of padded rows [rows, 2, T], which fill up a whole batch."""
    shape = tf.shape(rows, tf.int64)
    rows = tf.pad(rows, [[0, _batch_size(shape[2], tokens) - shape[0]], [0, 0], [0, 0]])
    source, outputs = tf.unstack(rows, axis=1)
    is_token = outputs != Pieces.PAD
    inputs = tf.pad(outputs[:, :-1], [[0, 0], [1, 0]], constant_values=Pieces.END)
    inputs = tf.where(is_token, inputs, Pieces.PAD)
    return (source, inputs), outputs, tf.cast(is_token, tf.float32)
