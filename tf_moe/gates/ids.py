"""The input `gate_id` beside the tokens: which gate, which word, or whatever else a gate goes by."""

from typing import Any

import keras
import tensorflow as tf

from tf_moe.ops.spread import spread


def check_ids(value: Any, inputs: tf.Tensor) -> tf.Tensor:
    """The ids of inputs `(..., D)`, as a tensor; both may be symbolic.

    Raises:
        ValueError: If they are no integers, or their shape is not that of the leading dimensions or the first of them,
            1 standing for any size, as far as shapes are known.
    """
    if not isinstance(value, keras.KerasTensor):
        value = keras.ops.convert_to_tensor(value)
    if not tf.as_dtype(value.dtype).is_integer:
        raise ValueError(f"gate_id must be of integers. Received: gate_id of dtype {tf.as_dtype(value.dtype).name}.")
    shape, positions = tf.TensorShape(value.shape), tf.TensorShape(inputs.shape)[:-1]
    fits = shape.rank is not None and shape.rank <= positions.rank
    fits = fits and all(size in (1, None, n) or n is None for size, n in zip(shape, positions, strict=False))
    if not fits:
        raise ValueError(
            "gate_id must have the shape of the inputs without the last dimension, or of the first of these, such as "
            f"(B,) for inputs (B, T, D). Received: gate_id {shape}, inputs {tuple(inputs.shape)}."
        )
    return value


def spread_ids(value: Any, inputs: tf.Tensor) -> tf.Tensor:
    """The id of every position of inputs `(..., D)`, int64 `(T,)`; see `check_ids`."""
    return spread(tf.cast(check_ids(value, inputs), tf.int64), inputs)
