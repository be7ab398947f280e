"""Milliseconds a training step of one LSTM layer: keras.layers.LSTM and tf_moe.layers.LSTM, side by side.

    python examples/benchmarks/lstm.py --sizes 64x35x128 16x100x256 32x20x512
    python examples/benchmarks/lstm.py --sizes 16x100x256 --jit

A size is batch x time x width (of the input and of the state). A step is the forward and the backward pass, for the
inputs and all weights. The two take turns, so that what else the machine does falls on both.
"""

import keras
import tensorflow as tf
from arguments import make_parser, parse
from timing import interleave, print_table

from tf_moe.layers.lstm import LSTM

LAYERS = {"keras": keras.layers.LSTM, "tf_moe": LSTM}


def training_step(layer, inputs, jit):
    layer.build(inputs.shape)

    @tf.function(jit_compile=jit)
    def step():
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(layer(inputs, training=True) ** 2)
        return loss, tape.gradient(loss, [inputs, *[weight.value for weight in layer.trainable_weights]])

    return step


def measure(size, repetitions, jit):
    """The row of one size: milliseconds a step of each layer."""
    batch, steps, width = size
    inputs = tf.random.normal([batch, steps, width])
    # Keras keeps an LSTM out of XLA only for cuDNN's sake.
    layers = {name: layer(width, return_sequences=True, use_cudnn=not jit and "auto") for name, layer in LAYERS.items()}
    calls = {name: training_step(layer, inputs, jit) for name, layer in layers.items()}
    row = {"batch x time x width": "x".join(map(str, size))}
    for name, times in interleave(calls, tuple, repetitions).items():
        row |= {f"{name}, clock (ms)": times.wall, f"{name}, CPU (ms)": times.cpu}
    return row


def parse_size(text):
    return tuple(int(number) for number in text.split("x"))


def main(arguments=None):
    parser = make_parser(__doc__, repetitions=50)
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=[(64, 35, 128), (16, 100, 256), (32, 20, 512)])
    parser.add_argument("--jit", action="store_true", help="compile the step with XLA")
    options = parse(parser, arguments, sizes=[(2, 3, 4)], repetitions=1)
    print_table(measure(size, options.repetitions, options.jit) for size in options.sizes)


if __name__ == "__main__":
    main()
