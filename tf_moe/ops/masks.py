"""Masks of positions: rows without what they hide, and the masks that Keras attaches to tensors."""

from typing import Any

import tensorflow as tf


def mask_rows(values: tf.Tensor, mask: tf.Tensor | None, instead: float = 0.0) -> tf.Tensor:
    """Rows with others in the place of masked ones, which may be NaN and have no gradient.

    Args:
        values: Floating point `(..., D)`.
        mask: Bool `(...)`, False where a row is masked; or None, where none is.
        instead: What the masked rows hold then. Default 0.0.
    """
    return values if mask is None else tf.where(tf.expand_dims(mask, -1), values, instead)


def attached_mask(inputs: Any) -> tf.Tensor | None:
    """The mask that an embedding, say, attached to its output, or None.

    Keras passes it on to layers by itself, but not where they are called with a second tensor.
    """
    return getattr(inputs, "_keras_mask", None)


def attach_mask(outputs: Any, mask: tf.Tensor | None) -> None:
    """Attach a mask, if there is one, where `attached_mask` and Keras's losses and metrics find it."""
    if mask is not None:
        outputs._keras_mask = mask
