"""A training step of the layer, as a multiple of two dense matrix products of the same arithmetic.

    python examples/benchmarks/layer.py
    python examples/benchmarks/layer.py --sizes 4096x256 16384x64 --skews 0 0.7 --against einsum per_expert all

A size is tokens x experts. A step is the forward and the backward pass of the whole layer, gate and both losses
included, for the inputs and all weights; every step has fresh noise and inputs, hence a fresh routing. The loads follow
Zipf's law with the exponent --skews; 0 is the untrained gate, which noise alone balances. Ratios are of process CPU
time and of the clock, medians of calls that take turns; on a busy machine only the former mean something.

What it can be compared with; the first three have the same gate and weights:

    einsum        one-hot dispatch by matrix products (GShard), groups of 512 tokens, capacity factor 1.25: it drops
    per_expert    a gather, two products and a scatter for each expert, unrolled (tensor2tensor's local_moe)
    all           every expert on every token
    model_garden  TF Model Garden's MoeLayer, where the package tf-models-official is installed: experts choose their
                  tokens, as many as there are choices of tokens here, by products with one-hot matrices
"""

import functools
import time

import numpy as np
import tensorflow as tf
from arguments import make_parser, parse
from contenders import CONTENDERS, model_garden
from steps import floor
from timing import interleave, print_table

from tf_moe.layers import SparseMoE
from tf_moe.losses import cv_squared


def training_step(outputs, weights):
    """Forward and backward pass of `outputs(x) -> y, loss`."""

    @tf.function
    def step(x, d_y):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y, loss = outputs(x)
            total = tf.reduce_sum(y * d_y) + loss
        return y, tape.gradient(total, [x, *weights])

    return step


def make_steps(layer, tokens, names):
    """The steps to be timed, by name."""
    width, hidden = layer.experts.hidden_kernel.shape[1:]
    weights, bank = ([v.value for v in part.trainable_variables] for part in (layer, layer.experts))

    def ours(x):
        return layer(x, training=True), tf.add_n(layer.losses)

    def theirs(function, x):
        routing = layer.gate(x, training=True)
        y = function(x, routing.expert_index, routing.combine_weights, *bank)
        return y, 0.1 * (cv_squared(routing.importance) + cv_squared(routing.load))

    steps = {"floor": floor(layer.k * tokens, width, hidden), "tf_moe": training_step(ours, weights)}
    for name in names:
        if name == "model_garden":
            steps[name] = training_step(*model_garden(layer.num_experts, width, hidden, layer.k, tokens))
        else:
            steps[name] = training_step(functools.partial(theirs, CONTENDERS[name]), weights)
    return steps


def make_fresh(rng, layer, tokens, skew):
    """Makes inputs whose loads follow Zipf's law, and gradients of outputs."""
    width, experts = layer.experts.hidden_kernel.shape[1], layer.num_experts
    if skew:  # an input is the sum of its experts' codes, in which the gate finds them: a feature each, if there are
        logits = -skew * np.log(1 + rng.permutation(experts))
        codes = np.eye(experts, width) if experts <= width else rng.standard_normal((experts, width)) / width**0.5
        layer.gate.kernel.assign(10 * codes.T)

    def fresh():
        x = rng.standard_normal((tokens, width))
        if skew:  # Gumbel noise over log-probabilities draws from them
            drawn = np.argpartition(logits + rng.gumbel(size=(tokens, experts)), -layer.k)[:, -layer.k :]
            x = codes[drawn].sum(axis=1)
        return tf.constant(x, tf.float32), tf.random.normal([tokens, width])

    return fresh


def measure(tokens, experts, skew, options):
    """The row of one size."""
    layer = SparseMoE(experts, options.hidden, k=options.k)
    layer.build((None, options.width))
    rng = np.random.default_rng()
    fresh = make_fresh(rng, layer, tokens, skew)
    steps = make_steps(layer, tokens, options.against)
    arguments, started = fresh(), time.perf_counter()
    steps["tf_moe"](*arguments)
    first = time.perf_counter() - started
    times = interleave(steps, fresh, options.repetitions)
    load = tf.math.bincount(layer.route(arguments[0], training=True).expert_index, minlength=experts)
    row = {"tokens x experts": f"{tokens}x{experts}", "skew": skew, "max/mean load": int(max(load)) / np.mean(load)}
    row |= {"floor (CPU ms)": times["floor"].cpu, "first call (s)": first}
    for name in list(steps)[1:]:
        row[f"{name}, CPU"] = times[name].cpu / times["floor"].cpu
        row[f"{name}, clock"] = times[name].wall / times["floor"].wall
    return row


def parse_size(text):
    tokens, experts = text.split("x")
    return int(tokens), int(experts)


def main(arguments=None):
    parser = make_parser(__doc__, width=512, hidden=1024, k=4, repetitions=15)
    sizes = [(4096, 16), (16384, 64), (4096, 64), (4096, 256), (4096, 1024)]
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=sizes, metavar="TxE")
    parser.add_argument("--skews", nargs="+", type=float, default=[0.0], metavar="S")
    parser.add_argument("--against", nargs="*", choices=[*CONTENDERS, "model_garden"], default=[])
    options = parse(parser, arguments, sizes=[(64, 8)], width=16, hidden=32, repetitions=1)
    print_table(measure(*size, skew, options) for size in options.sizes for skew in options.skews)


if __name__ == "__main__":
    main()
