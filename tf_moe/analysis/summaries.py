"""What TensorBoard reads, by TensorFlow alone: `tf.summary.scalar` and the like need TensorBoard installed."""

import numpy as np
import tensorflow as tf

_BINS = 30


def write_scalar(tag: str, value: float, step: int) -> None:
    """Write a number to the default writer."""
    _write(tag, tf.constant(value, tf.float32), step, "scalars")


def write_histogram(tag: str, values: np.ndarray, step: int) -> None:
    """Write the distribution of values to the default writer, in 30 bins of one width."""
    counts, edges = np.histogram(values, bins=_BINS)
    bins = np.stack([edges[:-1], edges[1:], counts], axis=1)
    _write(tag, tf.constant(bins, tf.float64), step, "histograms")


def write_image(tag: str, colours: np.ndarray, step: int) -> None:
    """Write a picture, uint8 `(H, W, channels)`, to the default writer."""
    height, width, _ = colours.shape
    png = tf.io.encode_png(colours).numpy()
    _write(tag, tf.constant([str(width).encode(), str(height).encode(), png]), step, "images")


def write_text(tag: str, markdown: str, step: int) -> None:
    """Write a text to the default writer."""
    _write(tag, tf.constant(markdown), step, "text")


def _write(tag: str, value: tf.Tensor, step: int, plugin: str) -> None:
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = plugin  # version 0 of each plugin's format, whose own data are empty
    tf.summary.write(tag, value, step=step, metadata=metadata)
