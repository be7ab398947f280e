"""What a trained language model loses, and what it saves, with its experts in fewer bits or with fewer experts.

    python examples/language_model.py
    python examples/shrink.py runs/language_model/moe-64.keras

The model is evaluated on the test text that it was trained beside: the Python standard library, or `--data`. How much
each expert is used is measured on the validation text. Nothing is trained: a smaller model is evaluated as it comes.
"""

import argparse
import math
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from common import positive

from tf_moe.analysis import measure_usage
from tf_moe.conversion import merge_experts, prune_experts, quantize_experts, shrink_experts
from tf_moe.layers import SparseMoE
from tf_moe.text import Corpus, Vocabulary, contiguous_batches


def bank_bytes(model: keras.Model) -> int:
    """Bytes of the experts' weights, as they are stored."""
    weights = [w for layer in model.layers if isinstance(layer, SparseMoE) for w in layer.experts.weights]
    return sum(math.prod(w.shape) * tf.as_dtype(w.dtype).size for w in weights)


def smaller_models(model: keras.Model, shares: list[int], validation: tf.data.Dataset, test: tf.data.Dataset):
    """Name, model, and what `evaluate` says of it, one after the other."""

    def evaluate(name, smaller):
        return name, smaller, smaller.evaluate(test, verbose=0, return_dict=True)

    yield evaluate("as trained", model)
    for mode in ("bfloat16", "int8"):
        yield evaluate(mode, quantize_experts(model, mode))
    usage = measure_usage(model, validation)
    for share in shares:
        for name, shrink in (("the most used", prune_experts), ("averaged to", merge_experts)):

            def fewer(moe, share=share, shrink=shrink):
                return shrink(moe, max(moe.k, moe.num_experts // share), usage[moe.name])

            result = shrink_experts(model, fewer, test)
            yield f"{name} 1/{share}", result.model, result.after


def show(values) -> None:
    print("|", " | ".join(values), "|", flush=True)


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a .keras file of examples/language_model.py, of one level of experts")
    parser.add_argument("--vocabulary", type=Path, help="default: vocabulary.txt beside the model")
    parser.add_argument("--data", metavar="DIR", help="directory of text files (default: the standard library)")
    parser.add_argument(
        "--keep", default=[2, 4], nargs="+", type=positive, metavar="N", help="an N-th of the experts (default: 2 4)"
    )
    parser.add_argument("--batch", default=64, type=positive, help="windows in a batch (default: %(default)s)")
    parser.add_argument("--steps", default=64, type=positive, help="time steps of a window (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="two batches of text, to see that all works")
    return parser.parse_args(arguments)


def compare(options: argparse.Namespace) -> None:
    """Print a row for each of the smaller models."""
    model = keras.models.load_model(options.model)
    vocabulary = Vocabulary.load(options.vocabulary or options.model.parent / "vocabulary.txt")
    corpus = Corpus.from_directory(options.data) if options.data else Corpus.standard_library()

    def batches(text):
        length = vocabulary.count_tokens(text)
        found = contiguous_batches(text, vocabulary, options.batch, options.steps, num_tokens=length)
        return (found.take(2) if options.smoke else found).cache()

    test = batches(corpus.test)
    inputs = next(iter(test))[0]
    logits = model(inputs)
    show(["experts", "bank, bytes", "test perplexity", "largest difference of logits"])
    show(["---"] * 4)
    for name, smaller, metrics in smaller_models(model, options.keep, batches(corpus.validation), test):
        difference = np.abs(smaller(inputs) - logits).max()
        show([name, f"{bank_bytes(smaller):,}", f"{metrics['perplexity']:.3f}", f"{difference:.4f}"])


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    try:
        compare(options)
    except (ValueError, OSError) as error:  # no such file, or a model or a text that this does not fit: it says which
        sys.exit(f"shrink.py: {error}")


if __name__ == "__main__":
    main()
