"""A training step of a softmax over a large vocabulary: all of it, and a sample of it.

    python examples/benchmarks/softmax.py
    python examples/benchmarks/softmax.py --vocabularies 800000 --optimizer factored_adam

A step is loss, gradients and update of a model that is nothing but the softmax, on fresh inputs and words that follow
Zipf's law. The gradients of the words' vectors are dense on both sides, and so is the optimizer's work; with plain SGD
what remains is nearly the softmax alone.
"""

import keras
import numpy as np
from arguments import make_parser, parse
from timing import interleave, print_table

from tf_moe.layers import SampledSoftmax, SampledSoftmaxLoss
from tf_moe.optimizers import FactoredAdam

OPTIMIZERS = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam, "factored_adam": FactoredAdam}


def make_model(last, loss, options):
    model = keras.Sequential([keras.Input((options.width,)), last])
    model.compile(OPTIMIZERS[options.optimizer](1e-3), loss)
    return model


def measure(vocabulary, options):
    full = make_model(
        keras.layers.Dense(vocabulary), keras.losses.SparseCategoricalCrossentropy(from_logits=True), options
    )
    sampled = make_model(SampledSoftmax(vocabulary, options.sampled), SampledSoftmaxLoss(), options)
    rng = np.random.default_rng()

    def fresh():
        words = np.exp(rng.random(options.tokens) * np.log(vocabulary)).astype("int32") - 1
        return rng.standard_normal((options.tokens, options.width), "float32"), words

    times = interleave({"full": full.train_on_batch, "sampled": sampled.train_on_batch}, fresh, options.repetitions)
    return {
        "vocabulary": vocabulary,
        "optimizer": options.optimizer,
        "full, clock (ms)": times["full"].wall,
        "sampled, clock (ms)": times["sampled"].wall,
        "times faster, clock": times["full"].wall / times["sampled"].wall,
        "times faster, CPU": times["full"].cpu / times["sampled"].cpu,
    }


def main(arguments=None):
    parser = make_parser(__doc__, vocabularies=[10_000, 100_000], tokens=1024, width=512, sampled=8192, repetitions=7)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="factored_adam", help="default: %(default)s")
    options = parse(parser, arguments, vocabularies=[50], tokens=8, width=4, sampled=10, repetitions=1)
    print_table(measure(vocabulary, options) for vocabulary in options.vocabularies)


if __name__ == "__main__":
    main()
