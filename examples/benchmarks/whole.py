"""The paper's language model as a whole: a training step by its parts, each beside its matrix products alone.

    python examples/benchmarks/whole.py

The default is the network of 8M multiply-adds a time step (embedding 512, two LSTMs of 512, 4 experts of 512 x 1024 x
512 a token, softmax) in batches of 4096 tokens. The products of a part are those of its forward and backward pass as
dense ones, an LSTM's over all steps at once: what no implementation can save. The parts are timed by themselves; what
they do not add up to is embedding, dropout, residuals, metrics and Keras. The last line is the input pipeline alone:
the text of the standard library, read, tokenised, cut into windows.
"""

import itertools
import time

import keras
import tensorflow as tf
from arguments import make_parser, parse
from steps import layer_step, sum_of_squares
from timing import interleave, print_table

from tf_moe.layers import LSTM, SparseMoE
from tf_moe.models import language_model
from tf_moe.optimizers import FactoredAdam, optimizer_for
from tf_moe.text import Corpus, build_vocabulary, contiguous_batches

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def products_step(shapes: list[tuple[int, int, int]]):
    """Products (rows, in) x (in, out), each with those of its gradients."""
    operands = [[tf.random.normal(s) for s in ((r, i), (i, o), (r, o))] for r, i, o in shapes]

    @tf.function
    def step(operands):
        return [
            (tf.matmul(x, w), tf.matmul(dy, w, transpose_b=True), tf.matmul(x, dy, transpose_a=True))
            for x, w, dy in operands
        ]

    return lambda *_: step(operands)


def part_step(layer, shape, loss=sum_of_squares):
    """A step of one layer on new inputs."""
    layer.build(shape)
    step = layer_step(layer, loss)
    return lambda _, targets: step(tf.random.normal(shape), tf.constant(targets))


def optimizer_step(optimizer, weights):
    gradients = [tf.random.normal(w.shape) for w in weights]
    step = tf.function(lambda gradients: optimizer.apply(gradients, weights), autograph=False)
    return lambda *_: step(gradients)


def measure(options):
    """A row for each part, and one for the model."""
    width, tokens, shape = options.width, options.batch * options.steps, (options.batch, options.steps, options.width)

    def make_moe():
        return SparseMoE(options.experts, options.hidden, k=options.k, output_activation="sigmoid")

    model = language_model(options.vocabulary, [make_moe()], width)
    optimizer = optimizer_for(FactoredAdam(1e-3), keras.optimizers.Adam(1e-3))
    model.compile(optimizer, LOSS)
    optimizer.build(model.trainable_variables)

    lstm = [(tokens, width, 4 * width)] * 2
    rows = options.k * tokens
    moe = [(rows, width, options.hidden), (rows, options.hidden, width), *[(tokens, width, options.experts)] * 2]
    softmax = [(tokens, width, options.vocabulary)]
    parts = {
        "an LSTM": (part_step(LSTM(width, return_sequences=True), shape), lstm),
        "mixture of experts": (part_step(make_moe(), shape), moe),
        "softmax and loss": (part_step(keras.layers.Dense(options.vocabulary), shape, LOSS), softmax),
        "optimizer": (optimizer_step(optimizer, model.trainable_variables), None),
        "whole model": (model.train_on_batch, [*lstm, *lstm, *moe, *softmax]),
    }
    calls = {name: call for name, (call, _) in parts.items()}
    calls |= {(name, "products"): products_step(shapes) for name, (_, shapes) in parts.items() if shapes}

    def fresh():
        ids = tf.random.uniform([options.batch, options.steps + 1], 1, options.vocabulary, tf.int32).numpy()
        return ids[:, :-1], ids[:, 1:]

    times = interleave(calls, fresh, options.repetitions)
    for name in parts:
        ours, products = times[name], times.get((name, "products"))
        yield {
            "part": name,
            "clock (ms)": ours.wall,
            "products (ms)": products.wall if products else "",
            "share of products": products.wall / ours.wall if products else "",
            "tokens/s": round(1e3 * tokens / ours.wall),
        }


def measure_pipeline(options):
    text = Corpus.standard_library().train
    vocabulary = build_vocabulary(text, options.vocabulary, tokenizer="code")
    batches = contiguous_batches(text, vocabulary, options.batch, options.steps, shuffle_buffer=100_000)
    started, positions = time.perf_counter(), 0
    for inputs, _, _ in itertools.islice(batches, options.batches):
        positions += int(tf.size(inputs))
    seconds = time.perf_counter() - started
    return {
        "part": "input pipeline",
        "clock (ms)": 1e3 * seconds * options.batch * options.steps / positions,
        "products (ms)": "",
        "share of products": "",
        "tokens/s": round(positions / seconds),
    }


def main(arguments=None):
    sizes = {"experts": 32, "k": 4, "width": 512, "hidden": 1024, "vocabulary": 10_000, "batch": 128, "steps": 32}
    parser = make_parser(__doc__, **sizes, batches=400, repetitions=10)
    tiny = {"experts": 4, "width": 8, "hidden": 16, "vocabulary": 500, "batch": 4, "steps": 8}
    options = parse(parser, arguments, **tiny, batches=2, repetitions=1)
    print_table(itertools.chain(measure(options), map(measure_pipeline, [options])))


if __name__ == "__main__":
    main()
