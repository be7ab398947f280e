"""Milliseconds a training step of one LSTM layer: keras.layers.LSTM and tf_moe.layers.LSTM, side by side.

    python examples/benchmark_lstm.py --sizes 64x35x128 16x100x256 32x20x512
    python examples/benchmark_lstm.py --sizes 16x100x256 --jit

A size is batch x time x width (of the input and of the state). A step is the forward and the backward pass, for the
inputs and all weights. The two take turns, so that what else the machine does falls on both.
"""

import argparse
import statistics
import time

import keras
import tensorflow as tf

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


def measure(size, repeats, jit):
    """Median wall and CPU milliseconds a step of each layer."""
    batch, steps, width = size
    inputs = tf.random.normal([batch, steps, width])
    # Keras keeps an LSTM out of XLA only for cuDNN's sake.
    layers = {name: layer(width, return_sequences=True, use_cudnn=not jit and "auto") for name, layer in LAYERS.items()}
    runs = {name: training_step(layer, inputs, jit) for name, layer in layers.items()}
    times = {name: [] for name in runs}
    for name in list(runs) * (repeats + 2):  # the first two of each trace and warm up
        wall, cpu = time.perf_counter(), time.process_time()
        runs[name]()[0].numpy()
        times[name].append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))
    return {name: [statistics.median(column) for column in zip(*rows[2:], strict=True)] for name, rows in times.items()}


def parse_size(text):
    return tuple(int(number) for number in text.split("x"))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=[(64, 35, 128), (16, 100, 256), (32, 20, 512)])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--jit", action="store_true", help="compile the step with XLA")
    parser.add_argument("--smoke", action="store_true", help="one tiny size, to see that it runs")
    options = parser.parse_args(arguments)
    sizes, repeats = ([(2, 3, 4)], 1) if options.smoke else (options.sizes, options.repeats)
    print(f"{'batch x time x width':>22}  {'layer':8}{'wall ms':>9}{'CPU ms':>9}")
    for size in sizes:
        for name, (wall, cpu) in measure(size, repeats, options.jit).items():
            print(f"{'x'.join(map(str, size)):>22}  {name:8}{wall:9.1f}{cpu:9.1f}", flush=True)


if __name__ == "__main__":
    main()
