"""Classifies images with a mixture of experts over the positions of a feature map, beside dense layers in its place.

Two or more convolutions make a map of features, each position of which goes to the experts that the gate picks for it.
In the twin network a dense layer of the same multiply-adds stands there. In a third, "wide", it has as many hidden
units as all experts together, and takes the arithmetic of all: where that is no better either, capacity is not missing.

Without arguments the images are the 1,797 digits that come with scikit-learn; with `--data`, a directory with a folder
of images for each class.

    python examples/images.py
    python examples/images.py --data flowers --size 64 --channels 16 32 64

It prints a Markdown table of all networks over several seeds, whether the mixture beats its twin, and which classes
each expert is for. A fifth of the images is for testing, the same for all seeds; a fifth is for choosing sizes by.
"""

import argparse
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from common import positive
from comparing import (
    Data,
    add_common_arguments,
    check_folders,
    compare,
    middles,
    show_comparison,
    show_experts,
    split,
    verdict,
)


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = {"type": positive, "metavar": "N"}
    parser.add_argument("--data", metavar="DIR", type=Path, help="a folder for each class (default: digits)")
    parser.add_argument("--size", default=32, help="pixels of a side, for --data (default: %(default)s)", **number)
    parser.add_argument(
        "--channels", nargs="+", default=[16, 32], help="of the convolutions (default: 16 32)", **number
    )
    add_common_arguments(parser, experts=8, hidden=32, epochs=40, learning_rate=2e-2)
    options = parser.parse_args(arguments)
    if options.smoke:
        options.channels, options.hidden, options.seeds, options.epochs = [4, 8], 8, 1, 1
    return options


def load_digits() -> Data:
    """8 x 8 pixels, from 0 to 1."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            f"The digits come with scikit-learn: pip install 'tf_moe[images]', or pass --data. Received: {error}."
        ) from error
    digits = datasets.load_digits()
    return split(digits.images[..., np.newaxis].astype("float32") / 16, digits.target, [str(n) for n in range(10)])


def load_folders(directory: Path, size: int) -> Data:
    """Coloured images of `size` x `size` pixels, from 0 to 1, all in memory."""
    check_folders(directory)
    dataset = keras.utils.image_dataset_from_directory(
        directory, image_size=(size, size), batch_size=None, shuffle=False, crop_to_aspect_ratio=True, verbose=False
    )
    images, labels = [], []
    try:
        for image, label in dataset:
            images.append(image.numpy() / 255)
            labels.append(label.numpy())
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"No image that can be read: {dataset.file_paths[len(images)]}.") from error
    return split(np.stack(images), np.array(labels), dataset.class_names)


def build(middle: keras.layers.Layer, data: Data, options: argparse.Namespace) -> keras.Model:
    """Convolutions, what is to be compared with a residual connection around it, and a softmax."""
    inputs = x = keras.Input(data.train.inputs.shape[1:])
    for level, channels in enumerate(options.channels):
        if level > 0:
            x = keras.layers.MaxPooling2D(padding="same")(x)
        x = keras.layers.Conv2D(channels, 3, padding="same", activation="relu")(x)
    x = keras.layers.Add()([x, middle(x)])  # (batch, height, width, channels)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(len(data.classes))(x), name=middle.name)


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    try:
        data = load_folders(options.data, options.size) if options.data else load_digits()
        layers = middles(options.channels[-1], options)
    except (ValueError, OSError, ImportError) as error:  # the message says what to do
        sys.exit(f"images.py: {error}")
    networks = {name: lambda make=make: build(make(), data, options) for name, make in layers.items()}
    runs = compare(networks, data, options)
    print(f"\n{show_comparison(runs, data, 'an image')}\n\n{verdict(runs['moe'], runs['dense'])}\n")
    print("Experts of seed 0 over the test images:\n")
    print(show_experts(runs["moe"][0].test.load, data.test.labels, data.classes, "class"))


if __name__ == "__main__":
    main()
