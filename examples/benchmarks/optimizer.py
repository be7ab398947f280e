"""Milliseconds that an optimizer takes to update a bank of experts, and the memory that goes by meanwhile.

    python examples/benchmarks/optimizer.py

What an update needs at least is to read weights and gradients and to write the weights: 12 bytes a weight. GB/s are
those bytes by the time taken; a copy of the same weights tells what the machine can do.
"""

import keras
import tensorflow as tf
from arguments import make_parser, parse
from timing import interleave, print_table

from tf_moe.optimizers import FactoredAdam

OPTIMIZERS = {"keras.optimizers.Adam": keras.optimizers.Adam, "FactoredAdam": FactoredAdam}


def update_step(optimizer, shapes):
    variables = [keras.Variable(tf.random.normal(shape)) for shape in shapes]
    optimizer.build(variables)

    @tf.function
    def step(*gradients):
        optimizer.apply(list(gradients), variables)

    return step


def measure(experts, options):
    shapes = [(experts, options.width, options.hidden), (experts, options.hidden, options.width)]
    weights = 2 * experts * options.width * options.hidden
    calls = {name: update_step(make(), shapes) for name, make in OPTIMIZERS.items()}

    @tf.function
    def copy(*gradients):
        return [-g for g in gradients]

    times = interleave(
        calls | {"copy": copy}, lambda: tuple(tf.random.normal(shape) for shape in shapes), options.repetitions
    )
    row = {"experts": experts, "weights (M)": weights / 1e6, "copy (GB/s)": 8 * weights / times["copy"].wall / 1e6}
    for name in OPTIMIZERS:
        row[f"{name} (ms)"] = times[name].wall
    theirs, ours = (times[name] for name in OPTIMIZERS)
    row |= {"ratio, clock": ours.wall / theirs.wall, "ratio, CPU": ours.cpu / theirs.cpu}
    return row | {"needed (MB)": 12 * weights / 1e6, "FactoredAdam (GB/s)": 12 * weights / ours.wall / 1e6}


def main(arguments=None):
    parser = make_parser(__doc__, experts=[16, 64, 256], width=512, hidden=1024, repetitions=10)
    options = parse(parser, arguments, experts=[4], width=16, hidden=32, repetitions=1)
    print_table(measure(experts, options) for experts in options.experts)


if __name__ == "__main__":
    main()
