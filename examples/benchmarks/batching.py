"""What it is worth to give the experts many tokens at once: the same tokens in one call of the layer, or in many.

    python examples/benchmarks/batching.py

Section 3.1 of the paper names two ways to larger batches for the experts. All time steps of a recurrent layer's output
are one batch for them, where step by step each would be a call of its own; and data-parallel replicas share one copy of
the experts, where with copies of their own each replica would be a call. Both come to the same: more calls with fewer
tokens for each expert. The ratios are of CPU time against all tokens in one call: of the forward pass alone, and of a
training step, in which every call has a gradient of all experts, to be added to those of the others. Tokens and noise
are fresh.
"""

import functools

import tensorflow as tf
from arguments import make_parser, parse
from timing import interleave, print_table

from tf_moe.layers import SparseMoE


def forward_in(calls: int, layer: SparseMoE):
    """The forward pass of training over tokens `(T, D)` in so many calls of the layer, one after the other."""

    @tf.function
    def forward(x):
        parts = tf.reshape(x, [calls, -1, x.shape[-1]])
        total = 0.0
        for n in tf.range(calls):
            total += tf.reduce_mean(layer(parts[n], training=True)) + tf.add_n(layer.losses)
        return total

    return forward


def step_in(calls: int, layer: SparseMoE):
    """A training step over tokens `(T, D)` in so many calls of the layer, one after the other."""
    weights = [v.value for v in layer.trainable_variables]

    @tf.function
    def step(x):
        parts = tf.reshape(x, [calls, -1, x.shape[-1]])
        sums = [tf.zeros_like(w) for w in weights]
        for n in tf.range(calls):  # a loop, as over time; the gradients add up
            with tf.GradientTape() as tape:
                y = layer(parts[n], training=True)
                loss = tf.reduce_mean(tf.square(y)) + tf.add_n(layer.losses)
            sums = [a + b for a, b in zip(sums, tape.gradient(loss, weights), strict=True)]
        return sums

    return step


def main(arguments=None):
    sizes = {"tokens": 4096, "experts": 256, "width": 512, "hidden": 1024, "k": 4, "repetitions": 5}
    parser = make_parser(__doc__, calls=[1, 4, 16, 64], **sizes)
    tiny = {"calls": [1, 2], "tokens": 16, "experts": 8, "width": 16, "hidden": 32, "repetitions": 1}
    options = parse(parser, arguments, **tiny)
    layer = SparseMoE(options.experts, options.hidden, k=options.k)
    layer.build((None, options.width))
    numbers = sorted({1, *options.calls})
    forward = {f"forward {calls}": forward_in(calls, layer) for calls in numbers}
    steps = {f"step {calls}": step_in(calls, layer) for calls in numbers}
    fresh = functools.partial(tf.random.normal, [options.tokens, options.width])
    times = interleave(forward | steps, lambda: (fresh(),), options.repetitions)
    print_table(
        {
            "calls": calls,
            "tokens a call": options.tokens // calls,
            "tokens for an expert": options.k * options.tokens / calls / options.experts,
            "forward, CPU (ms)": times[f"forward {calls}"].cpu,
            "step, CPU (ms)": times[f"step {calls}"].cpu,
            "forward, ratio": times[f"forward {calls}"].cpu / times["forward 1"].cpu,
            "step, ratio": times[f"step {calls}"].cpu / times["step 1"].cpu,
        }
        for calls in numbers
    )


if __name__ == "__main__":
    main()
