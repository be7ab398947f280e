"""What a dataset of a Python generator costs the training steps after it.

    python examples/benchmarks/generator.py
    python examples/benchmarks/generator.py --read

Where such a dataset is first read, TensorFlow 2.21 sets a threshold of the C library's allocator, which then no longer
adapts to the sizes that are asked for: what is above 128 kB is from there on taken from the system and given back, each
time. Steps of a language model with a mixture of experts on random words; with `--read`, after a `from_generator` has
been read, without before. The batches come from an array. System time is what the system takes to hand out memory.
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
    parser.add_argument("--read", action="store_true", help="read a dataset of a generator first")
    tiny = {"experts": 4, "width": 8, "hidden": 4, "vocabulary": 50, "time": 3, "batch": 2, "steps": 2}
    options = parse(parser, arguments, repetitions=1, **tiny)
    moe = tf_moe.layers.SparseMoE(options.experts, options.hidden)
    model = tf_moe.models.language_model(options.vocabulary, [moe], options.width)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if options.read:
        list(tf.data.Dataset.from_generator(lambda: range(1), output_signature=tf.TensorSpec([], tf.int32)))
    shape = (options.batch * options.steps, options.time)
    x = np.random.default_rng(0).integers(1, options.vocabulary, shape).astype("int32")
    train(model, x[: options.batch], options.batch)
    tokens, user, system = np.median([train(model, x, options.batch) for _ in range(options.repetitions)], axis=0)
    when = "yes" if options.read else "no"
    print_table([{"a generator was read": when, "tokens/s": tokens, "user (s)": user, "system (s)": system}])


if __name__ == "__main__":
    main()
