"""The gate in training, as a multiple of its own matrix products; hierarchical gates as a share of the flat one.

    python examples/benchmarks/gate.py

A step is the forward and the backward pass of noisy top-k gating with both losses, with fresh inputs and noise.
"""

import tensorflow as tf
from arguments import make_parser, parse
from timing import interleave, print_table

from tf_moe.gates import Hierarchical, NoisyTopK
from tf_moe.losses import cv_squared


def gate_step(gate, width):
    gate.build((None, width))
    weights = [w.value for w in gate.trainable_weights]

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            routing = gate(x, training=True)
            loss = cv_squared(routing.importance) + cv_squared(routing.load)
            loss += tf.reduce_sum(routing.combine_weights[:, 0])
        return tape.gradient(loss, [x, *weights])

    return step


def products_step(experts, width):
    """The products x W_g and x W_noise and their gradients."""
    weights = [tf.random.normal([width, experts]) for _ in range(2)]
    d_logits = [tf.random.normal([1, experts]) for _ in range(2)]

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch([x, *weights])
            logits = [tf.matmul(x, w) for w in weights]
        upstream = [tf.repeat(d, tf.shape(x)[0], axis=0) for d in d_logits]
        return tape.gradient(logits, [x, *weights], upstream)

    return step


def measure(experts, groups, options):
    width = options.width
    calls = {"products": products_step(experts, width), "flat": gate_step(NoisyTopK(experts, 4), width)}
    if groups:
        pair = (groups, experts // groups)
        calls["hierarchical"] = gate_step(Hierarchical(pair, (2, 2)), width)
    times = interleave(calls, lambda: (tf.random.normal([options.tokens, width]),), options.repetitions)
    row = {"experts": experts, "products (CPU ms)": times["products"].cpu, "flat (CPU ms)": times["flat"].cpu}
    row |= {"flat / products, CPU": times["flat"].cpu / times["products"].cpu}
    row |= {"flat / products, clock": times["flat"].wall / times["products"].wall}
    share = times["hierarchical"].cpu / times["flat"].cpu if groups else ""
    return row | {"hierarchical": f"{groups}x{experts // groups}" if groups else "", "/ flat, CPU": share}


def main(arguments=None):
    parser = make_parser(__doc__, experts=[16, 256, 1024, 4096], tokens=4096, width=512, repetitions=15)
    options = parse(parser, arguments, experts=[64], tokens=32, width=16, repetitions=1)
    groups = {64: 8, 256: 16, 1024: 32, 4096: 64}
    print_table(measure(experts, groups.get(experts), options) for experts in options.experts)


if __name__ == "__main__":
    main()
