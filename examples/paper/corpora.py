"""What the studies train and test on: the generated language, or real text."""

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_moe.text import Corpus, FactLanguage, build_vocabulary, contiguous_batches


class Data(NamedTuple):
    """Batches of (tokens, next tokens, weights), and what is known of them.

    Attributes:
        name: For the table.
        digest: Of the text, which tells it from others of that name; None where the name says all.
        vocabulary_size: Number of ids, padding included.
        train: From a seed and a share of the text, batches without end.
        validation: Batches.
        test: Batches.
        floor: Perplexity of the test batches under the language itself; None where nobody knows it.
    """

    name: str
    digest: str | None
    vocabulary_size: int
    train: Callable[[int, float], tf.data.Dataset]
    validation: tf.data.Dataset
    test: tf.data.Dataset
    floor: float | None


def load(options: argparse.Namespace) -> Data:
    return generated(options) if options.corpus == "generated" else text(options)


def generated(options) -> Data:
    """Sequences of `FactLanguage`, drawn independently for each seed, for validation and for the test."""
    language = FactLanguage(options.words, options.facts, options.exponent)
    if options.study == "low_resource":
        raise ValueError(
            "The generated language never ends. Pass low_resource a text: --corpus python, or a directory."
        )

    def held_out(seed):
        return language.batches(4 * options.batch, options.time, seed, options.held_out).cache()

    test = held_out(1)
    whole = np.concatenate([np.concatenate([x, y[:, -1:]], axis=1) for x, y, _ in test.as_numpy_iterator()])
    return Data(
        f"generated, {options.words} words, {options.facts:g} facts, exponent {options.exponent:g}",
        None,
        language.vocabulary_size,
        lambda seed, _: language.batches(options.batch, options.time, seed + 2),
        held_out(0),
        test,
        float(np.exp(-language.log_probability(whole).mean())),
    )


def text(options) -> Data:
    """Windows of the standard library of this machine, or of the files in a directory."""
    if options.corpus == "python":
        corpus, tokenizer = Corpus.standard_library(), "code"
    else:
        corpus, tokenizer = Corpus.from_directory(options.corpus), "words"
    vocabulary = build_vocabulary(corpus.train, options.words, tokenizer=tokenizer)

    def held_out(part):
        length = vocabulary.count_tokens(part)
        return contiguous_batches(part, vocabulary, 4 * options.batch, options.time, num_tokens=length).cache()

    def train(seed, fraction):
        batches = contiguous_batches(corpus.train, vocabulary, options.batch, options.time, drop_remainder=True)
        windows = batches.unbatch()
        if fraction < 1:
            windows = windows.take(max(1, round(fraction * vocabulary.num_tokens / options.time))).cache()
        return windows.shuffle(100_000, seed).repeat().batch(options.batch, drop_remainder=True)

    name = f"{Path(options.corpus).resolve().name}, {options.words} words"
    return Data(
        name, digest_of(corpus), len(vocabulary), train, held_out(corpus.validation), held_out(corpus.test), None
    )


def digest_of(corpus: Corpus) -> str:
    """The first digits of a hash of all lines and of what part each is in."""
    digest = hashlib.sha256()
    for part in (corpus.train, corpus.validation, corpus.test):
        for line in part.lines():
            digest.update(line.encode() + b"\n")
        digest.update(b"\n\n")
    return digest.hexdigest()[:12]
