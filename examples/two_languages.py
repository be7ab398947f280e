"""Trains one language model on two languages: with one gate over the experts, and with a gate for each language.

The languages are generated. They have the same words and differ in every fact, which is what word follows two others:
nothing but the id of a sequence's language says at once which of the two is spoken, as with tasks that share their
inputs. All models are told the id, as an embedding added to that of the words; a layer with `num_gates` also takes it
as `gate_id`, and lets that language's gate choose among experts that both languages share.

    python examples/two_languages.py

The table says what each model is worth on each language, beside a dense one of equal multiply-adds and the perplexity
of the languages themselves, and how far a word's experts tell its language: 0 is chance, 1 all that they could.
"""

import argparse
import sys
from collections.abc import Iterable

import keras
import numpy as np
import tensorflow as tf
from common import format_table, positive, warmup_cosine

from tf_moe.analysis import count, measure_specialisation
from tf_moe.gates import NoisyTopK
from tf_moe.layers import LSTM, SparseMoE
from tf_moe.models import Perplexity, dense_twin
from tf_moe.text import FactLanguage

NUM_LANGUAGES = 2
HELD_OUT = 20  # batches to test


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = {"type": positive, "metavar": "N"}
    parser.add_argument("--experts", default=64, help="default: %(default)s", **number)
    parser.add_argument("--k", default=4, help="experts for each word (default: %(default)s)", **number)
    parser.add_argument("--hidden", default=128, help="of each expert (default: %(default)s)", **number)
    parser.add_argument("--width", default=64, help="of embedding and LSTM (default: %(default)s)", **number)
    parser.add_argument("--words", default=256, help="of each language (default: %(default)s)", **number)
    parser.add_argument("--steps", default=1000, help="of training (default: %(default)s)", **number)
    parser.add_argument("--batch", default=64, help="sequences of each language (default: %(default)s)", **number)
    parser.add_argument("--time", default=32, help="words of a sequence (default: %(default)s)", **number)
    parser.add_argument("--rate", default=8e-3, type=float, help="highest, of Adam (default: %(default)s)")
    parser.add_argument("--seed", default=0, type=int, help="of weights, noise and data (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="a tiny run, to see that all works")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.experts, options.hidden, options.width, options.words = 8, 16, 16, 30
        options.steps, options.batch, options.time = 4, 4, 8
    return options


def make_batches(languages: list[FactLanguage], options, seed: int, number: int | None = None) -> tf.data.Dataset:
    """Batches with as many sequences of each language: (inputs, following words, weights)."""

    def join(*batches):
        words, following, weights = (tf.concat(parts, axis=0) for parts in zip(*batches, strict=True))
        ids = tf.repeat(tf.range(len(batches)), options.batch)
        return {"words": words, "language": ids}, following, weights

    sources = (language.batches(options.batch, options.time, seed, number) for language in languages)
    return tf.data.Dataset.zip(*sources).map(join)


def build(name: str, middle: keras.layers.Layer, options) -> keras.Model:
    """Embedding, LSTM, the layer to compare with a residual connection, softmax."""
    words, language = keras.Input((None,), dtype="int32", name="words"), keras.Input((), dtype="int32", name="language")
    told = keras.layers.Embedding(NUM_LANGUAGES, options.width)(language)
    x = keras.layers.Embedding(options.words + 1, options.width)(words) + keras.ops.expand_dims(told, 1)
    x = x + LSTM(options.width, return_sequences=True)(x)
    several = isinstance(middle, SparseMoE) and middle.gate.num_gates
    x = x + (middle(x, gate_id=language) if several else middle(x))
    logits = keras.layers.Dense(options.words + 1)(x)
    return keras.Model({"words": words, "language": language}, logits, name=name)


def make_layers(options) -> dict[str, keras.layers.Layer]:
    """By the name of the model; all at the same multiply-adds."""

    def mixture(num_gates):
        # Zeros, the paper's start, let all gates begin alike; from random weights they differ at once.
        gate = NoisyTopK(options.experts, options.k, num_gates=num_gates, kernel_initializer="glorot_uniform")
        return SparseMoE(options.experts, options.hidden, options.k, gate=gate, seed=options.seed, name="moe")

    one = mixture(None)
    return {"dense": dense_twin(one, options.width), "one_gate": one, "gate_by_language": mixture(NUM_LANGUAGES)}


def train(model: keras.Model, languages: list[FactLanguage], options) -> None:
    schedule = warmup_cosine(options.rate, options.steps, options.steps // 20, alpha=0.02)
    model.compile(
        keras.optimizers.Adam(schedule, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[Perplexity()],
    )
    batches = make_batches(languages, options, options.seed + 1)  # always new ones
    model.fit(batches, steps_per_epoch=options.steps, shuffle=False, verbose=2)


def split(batches: tf.data.Dataset, options) -> list[tf.data.Dataset]:
    """The sequences of each language, which stand one after the other in every batch."""

    def only(n):
        rows = slice(n * options.batch, (n + 1) * options.batch)
        return batches.map(lambda *batch: tf.nest.map_structure(lambda x: x[rows], batch))

    return [only(n) for n in range(NUM_LANGUAGES)]


def perplexity(model: keras.Model, batches: tf.data.Dataset) -> float:
    return model.evaluate(batches, verbose=0, return_dict=True)["perplexity"]


def by_language(perplexities: Iterable[float]) -> dict[str, float]:
    """Cells of the table."""
    return {f"perplexity, language {n}": value for n, value in enumerate(perplexities)}


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    try:
        languages = [FactLanguage(options.words, exponent=0.7, seed=seed) for seed in range(NUM_LANGUAGES)]
        layers = make_layers(options)
    except ValueError as error:  # a wrong argument: the message says what to do
        sys.exit(f"two_languages.py: {error}")
    test = make_batches(languages, options, 0, HELD_OUT).cache()
    rows = []
    for name, layer in layers.items():
        keras.utils.set_random_seed(options.seed)
        model = build(name, layer, options)
        train(model, languages, options)
        cost, share = count(model), ""
        if isinstance(layer, SparseMoE):
            labels = {"language": lambda inputs: np.asarray(inputs["language"])}
            share = f"{measure_specialisation(model, test, 'moe', labels)['language'].share:.3f}"
        rows.append(
            {
                "model": name,
                "parameters": cost.parameters,
                "ops/timestep": cost.multiply_adds,
                **by_language(perplexity(model, part) for part in split(test, options)),
                "experts tell the language": share,
            }
        )
    rows.append({"model": "the languages themselves", **by_language(language.perplexity for language in languages)})
    print(format_table(rows))


if __name__ == "__main__":
    main()
