"""What `tf.data.Dataset.from_generator` costs all that comes after it in a process.

    python examples/benchmarks/generator.py

TensorFlow 2.21 tells the C library, where a dataset of a generator is first read, to give freed memory back to the
system at once. Steps of a language model with a mixture of experts on random words, before and after one has been read;
the batches themselves come from an array. System time is what the system takes to hand out memory.
"""

import os
import time

import keras
import numpy as np
import tensorflow as tf
from arguments import make_parser, parse
from timing import print_table

import tf_moe


def train(model, x, batch):
    """Tokens a second of one epoch, and the seconds of user and system time that it takes."""
    before, start = os.times(), time.perf_counter()
    model.fit(x, x, batch, verbose=0)
    after, seconds = os.times(), time.perf_counter() - start
    return x.size / seconds, after.user - before.user, after.system - before.system


def main(arguments=None):
    sizes = {"experts": 64, "width": 128, "hidden": 32, "vocabulary": 4096, "time": 64, "batch": 16, "steps": 60}
    parser = make_parser(__doc__, repetitions=5, **sizes)
    tiny = {"experts": 4, "width": 8, "hidden": 4, "vocabulary": 50, "time": 3, "batch": 2, "steps": 2}
    options = parse(parser, arguments, repetitions=1, **tiny)
    moe = tf_moe.layers.SparseMoE(options.experts, options.hidden)
    model = tf_moe.models.language_model(options.vocabulary, [moe], options.width)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    shape = (options.batch * options.steps, options.time)
    x = np.random.default_rng(0).integers(1, options.vocabulary, shape).astype("int32")
    train(model, x[: options.batch], options.batch)
    rows = []
    for when in ("before", "after"):
        if when == "after":
            numbers = tf.data.Dataset.from_generator(lambda: range(1), output_signature=tf.TensorSpec([], tf.int32))
            list(numbers)
        tokens, user, system = np.median([train(model, x, options.batch) for _ in range(options.repetitions)], axis=0)
        rows.append({"a generator was read": when, "tokens/s": tokens, "user (s)": user, "system (s)": system})
    print_table(rows)


if __name__ == "__main__":
    main()
