"""What is trained and tested on: numbers in words, or the files of a directory."""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf
from translating.number_words import HELD_OUT, write_numbers

from tf_moe.text import ParallelCorpus, ParallelText, Pieces, build_pieces, count_too_long, translation_batches

PIVOT = "en"  # the paper's directions are those to and from English
LENGTHS = (8, 12, 16, 20, 24, 28, 32, 40, 48, 64)  # of batches, in pieces, and the longest
SHUFFLED = 100_000  # pairs


Parts = dict[str, list[ParallelText]]


class Data(NamedTuple):
    """A corpus in pieces.

    Attributes:
        pieces: Shared by all languages.
        parts: The texts of "train", "validation" and "test".
        train: Batches without end.
        validation: Batches.
    """

    pieces: Pieces
    parts: Parts
    train: tf.data.Dataset
    validation: tf.data.Dataset


def load(options: argparse.Namespace) -> Data:
    """The corpus of the arguments; writes the numbers, and the pieces, to the output directory.

    Raises:
        ValueError: The files are not aligned or empty, or do not have the languages.
        FileNotFoundError: There is no such directory.
        ImportError: A package is missing.
    """
    corpus, directions = choose_directions(options)
    parts = {
        part: [text for direction in directions for text in corpus.parallel(part, *direction)]
        for part in ("train", "validation", "test")
    }
    print(f"{len(directions)} directions: {' '.join(map('-'.join, directions))}")
    for part, texts in parts.items():
        counts = [text.count() for text in texts]
        pairs, blank = (sum(values) for values in zip(*counts, strict=True))
        print(f"{part}: {pairs:,} pairs" + f", {blank:,} left out because a side is blank" * bool(blank))
    pieces = learn_pieces(parts["train"], options)
    too_long = count_too_long(parts["train"], pieces, options.longest)
    print(
        f"{len(pieces):,} pieces" + f"; {too_long:,} training pairs of over {options.longest} left out" * bool(too_long)
    )
    return batches_of(parts, pieces, options)


def batches_of(parts: Parts, pieces: Pieces, options: argparse.Namespace) -> Data:
    """Batches of the texts, those of all directions mixed."""
    lengths = [*(length for length in LENGTHS if length < options.longest), options.longest]
    train = translation_batches(
        parts["train"], pieces, options.tokens, lengths=lengths, shuffle_buffer=SHUFFLED, seed=options.seed
    ).repeat()
    validation = translation_batches(parts["validation"], pieces, options.tokens, lengths=lengths).cache()
    count = sum(1 for _ in validation)
    return Data(pieces, parts, train, validation.apply(tf.data.experimental.assert_cardinality(count)))


def by_direction(data: Data, options: argparse.Namespace) -> Iterator[tuple[str, Data]]:
    """Each direction by itself, in the same pieces; its batches are made when its turn comes."""
    for direction in dict.fromkeys(map(direction_of, data.parts["test"])):
        parts = {part: [t for t in texts if direction_of(t) == direction] for part, texts in data.parts.items()}
        yield direction, batches_of(parts, data.pieces, options)


def direction_of(text: ParallelText) -> str:
    """From which language into which: "en-fr"."""
    return f"{text.source_language}-{text.target_language}"


def choose_directions(options) -> tuple[ParallelCorpus, list[tuple[str, str]]]:
    """The corpus and its directions (source, target) that were asked for."""
    if options.data is None:
        folder = options.output / "numbers"
        write_numbers(folder, options.limit, dict.fromkeys(HELD_OUT, 10) if options.smoke else HELD_OUT)
        corpus = ParallelCorpus.from_directory(folder)
        return corpus, corpus.directions(PIVOT)
    corpus = ParallelCorpus.from_directory(options.data, test=options.test)
    if options.multilingual:
        return corpus, corpus.directions(options.pivot)
    return corpus, [(options.source, options.target)]


def learn_pieces(texts: list[ParallelText], options) -> Pieces:
    """Of the training part; with a token for each language translated into where there are several directions."""
    if any(text.part for text in texts):  # the rest of the files is validated and tested on; once each way is enough
        sources = [text for text in texts if text.source_language < text.target_language] or texts
    else:  # a file is read once, however many directions it is in
        sources = list({text.files: text for pair in texts for text in (pair.source, pair.target)}.values())
    directions = {(text.source_language, text.target_language) for text in texts}
    languages = sorted({target for _, target in directions}) if len(directions) > 1 else []
    # Numbers are put together from short words, in German without spaces.
    longest = {} if options.data else {"longest": 8}
    pieces = build_pieces(sources, options.pieces, languages=languages, coverage=options.coverage, **longest)
    options.output.mkdir(parents=True, exist_ok=True)
    pieces.save(options.output / "pieces.model")
    return pieces
