"""A text as numbers on disk: tokenised once, and read as a stream from then on."""

import hashlib
import json
import operator
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from tf_moe import checks
from tf_moe.text.text import Text, check_text
from tf_moe.text.vocabulary import Vocabulary

_MANIFEST = "manifest.json"
_END = 65_536  # bytes of each end of a file that tell it from another of its name and size
_COUNTS = ("tokens", "sentences", "bytes")  # what the manifest says of each shard
_INTERLEAVED = 16  # shards that are read at a time where order does not matter


@dataclass(frozen=True)
class TokenCache:
    """The sentences of a text as ids, in sharded files; `cache_tokens` makes it.

    A shard is a TFRecord file for each file of the text: tf.data reads it without Python, a block at a time, and its
    checksums tell of damage. A record is a block of sentences, int32 ids in little-endian order one after another, each
    sentence with its `</s>`. Blank lines are no sentences and left out.

    Attributes:
        shards: The files, in the order of the text.
        num_tokens: Tokens in all of them, a `</s>` for each sentence.
        num_sentences: Sentences in all of them.

    Example:
        >>> cache = tf_moe.text.cache_tokens(corpus.train, vocabulary, "cache/train")
        >>> cache.num_tokens, cache.num_sentences
        (21, 3)
    """

    shards: tuple[Path, ...]
    num_tokens: int
    num_sentences: int

    def blocks(
        self, *, shuffle: bool = False, seed: int | None = None, process: tuple[int, int] = (0, 1)
    ) -> tf.data.Dataset:
        """Blocks of some thousand sentences, RaggedTensor [sentences, None] of int32; every epoch has all of them.

        Args:
            shuffle: Whether blocks come in another order in every epoch: files are shuffled, and 16 of them are read in
                turn. Default False: the order of the text.
            seed: Makes a new dataset repeat the orders, epoch for epoch, where `tf.random.set_seed` had the same seed
                too, or none. Default None: they differ.
            process: Number of this process and how many there are: of n processes each gets every n-th block. Default
                (0, 1): all.

        Raises:
            ValueError: `seed` is no integer, `shuffle` no truth value, or `process` no such pair.
            tf.errors.DataLossError: on iteration, where a file is damaged.
        """
        shuffle, seed, (index, count) = checks.boolean("shuffle", shuffle), checks.seed(seed), _check_process(process)

        def records(file, number):
            # Where each shard has few blocks, the first of all of them must not go to one process.
            return tf.data.TFRecordDataset(file).shard(count, (index - number) % count)

        names = [os.fspath(file) for file in self.shards]
        files = tf.data.Dataset.from_tensor_slices((names, np.arange(len(names), dtype="int64")))
        if shuffle:
            files = files.shuffle(len(names), seed=seed, reshuffle_each_iteration=True)
        blocks = files.interleave(
            records, cycle_length=_INTERLEAVED if shuffle else 1, num_parallel_calls=tf.data.AUTOTUNE
        )
        return blocks.map(_decode, num_parallel_calls=tf.data.AUTOTUNE)


def cache_tokens(
    text: Text,
    vocabulary: Vocabulary,
    directory: str | os.PathLike,
    progress: Callable[[int, int], None] | None = None,
) -> TokenCache:
    """Tokenises a text into a directory, or takes what is there from the last time.

    Interrupted, it goes on after the last shard that is whole. A shard has its name only when it is, and counts only
    when it stands in the manifest, which is replaced at one stroke. Memory is that of a block, some 256 KiB of text.

    Args:
        text: What to read. A shard is made of each of its files.
        vocabulary: Gives the ids.
        directory: Where the shards are, made if need be. One process at a time may write there.
        progress: Called with the number of shards that are done and the number of all, at the start and after each.
            Default None.

    Raises:
        ValueError: The directory holds the tokens of other files (names, sizes and 64 KiB at each end are compared, in
            their order), of another part or by another vocabulary; or the text is damaged, as in `Text`.
        TypeError: `text` is no Text, or `vocabulary` no Vocabulary.

    Example:
        >>> cache = tf_moe.text.cache_tokens(corpus.train, vocabulary, "cache/train")
        >>> train = tf_moe.text.packed_batches(cache, batch_size=2, steps=16, shuffle_buffer=10_000)
    """
    check_text(text)
    checks.instance("vocabulary", vocabulary, Vocabulary, "Pass what build_vocabulary or Vocabulary.load returns.")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    source = _source(text, vocabulary)
    done = _read_manifest(directory, source)
    names = [f"{n:05}-of-{len(text.files):05}.tfrecord" for n in range(len(text.files))]
    # A file that was deleted, or cut off when the machine went down, is written again.
    done = {name: counts for name, counts in done.items() if _size(directory / name) == counts["bytes"]}
    report = progress or (lambda *_: None)
    report(len(done), len(names))
    for name, file in zip(names, text.files, strict=True):
        if name not in done:
            done[name] = _write_shard(Text([file], text.part), vocabulary, directory / name)
            _replace(directory / _MANIFEST, json.dumps({**source, "shards": done}, indent=1).encode())
            report(len(done), len(names))
    total = {count: sum(done[name][count] for name in names) for count in ("tokens", "sentences")}
    return TokenCache(tuple(directory / name for name in names), total["tokens"], total["sentences"])


def _check_process(process: tuple[int, int]) -> tuple[int, int]:
    """The pair; raises ValueError unless it is a number of a process and how many there are."""
    try:
        index, count = map(operator.index, process)
    except (TypeError, ValueError):
        index, count = 0, 0
    if not 0 <= index < count:
        raise ValueError(
            "process must be a pair (number of this process, number of processes), such as (0, 4). "
            f"Received: process={process!r}."
        )
    return index, count


def _decode(record: tf.Tensor) -> tf.RaggedTensor:
    """Sentences of a record: each ends with its only `</s>`."""
    ids = tf.io.decode_raw(record, tf.int32)
    ends = tf.where(tf.equal(ids, Vocabulary.END))[:, 0]
    return tf.RaggedTensor.from_row_limits(ids, ends + 1, validate=False)


def _source(text: Text, vocabulary: Vocabulary) -> dict:
    """What the ids follow from."""
    tokens = "\n".join([vocabulary.tokenizer.kind, *vocabulary.tokens]).encode("utf-8")
    return {
        "vocabulary": hashlib.sha256(tokens).hexdigest(),
        "files": [[file.name, file.stat().st_size, _digest_of_ends(file)] for file in text.files],
        "part": text.part,
    }


def _digest_of_ends(file: Path) -> str:
    """Of 64 KiB at each end: of a large corpus, all would take as long as its tokens."""
    with file.open("rb") as content:
        first = content.read(_END)
        content.seek(max(0, file.stat().st_size - _END))
        return hashlib.sha256(first + content.read()).hexdigest()[:16]


def _read_manifest(directory: Path, source: dict) -> dict:
    """The shards that are done; none without a manifest."""
    file = directory / _MANIFEST
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        different = [key for key in source if found[key] != source[key]]
        shards = {name: {count: int(counts[count]) for count in _COUNTS} for name, counts in found["shards"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} is damaged, or of something else. Delete {str(directory)!r}.") from error
    if different:
        key = different[0]
        raise ValueError(
            f"The tokens in {str(directory)!r} were made from another {key.removesuffix('s')}. Delete the directory, "
            f"or pass another. Received: {key}={_short(source[key])}, there: {_short(found[key])}."
        )
    return shards


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _write_shard(text: Text, vocabulary: Vocabulary, file: Path) -> dict[str, int]:
    """Writes the shard of one file of a text; returns how much there is in it."""
    unfinished, tokens, sentences = file.with_suffix(".unfinished"), 0, 0
    with tf.io.TFRecordWriter(os.fspath(unfinished)) as writer:
        for lines in text.blocks():
            ids = vocabulary.encode(tf.constant(lines))
            ids = tf.ragged.boolean_mask(ids, ids.row_lengths() > 1)  # a blank line has its </s> only
            writer.write(ids.flat_values.numpy().astype("<i4").tobytes())
            tokens, sentences = tokens + int(ids.flat_values.shape[0]), sentences + int(ids.nrows())
    unfinished.replace(file)
    return {"tokens": tokens, "sentences": sentences, "bytes": file.stat().st_size}


def _replace(file: Path, data: bytes) -> None:
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_bytes(data)
    unfinished.replace(file)


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.exists() else None
