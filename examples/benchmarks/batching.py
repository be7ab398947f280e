"""What it is worth to give the experts many tokens at once: the same tokens in one call of the layer, or in many.

    python examples/benchmarks/batching.py

Section 3.1 of the paper names two ways to larger batches for the experts. All time steps of a recurrent layer's output
are one batch for them, where step by step each would be a call of its own; and data-parallel replicas share one copy of
the experts, where with copies of their own each replica would be a call. Both come to the same: more calls with fewer
tokens for each expert. Timed is a training step, forward and backward pass, with fresh tokens and noise.
"""

import tensorflow as tf
from arguments import make_parser, parse
from timing import interleave, print_table

from tf_moe.layers import SparseMoE


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
    steps = {calls: step_in(calls, layer) for calls in options.calls}
    times = interleave(steps, lambda: (tf.random.normal([options.tokens, options.width]),), options.repetitions)
    print_table(
        {
            "calls": calls,
            "tokens a call": options.tokens // calls,
            "tokens for an expert": options.k * options.tokens / calls / options.experts,
            "clock (ms)": times[calls].wall,
            "CPU (ms)": times[calls].cpu,
            "times one call, CPU": times[calls].cpu / times[options.calls[0]].cpu,
        }
        for calls in options.calls
    )


if __name__ == "__main__":
    main()
