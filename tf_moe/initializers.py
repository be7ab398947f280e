"""Initial values for weights that are stacked over experts."""

from typing import Any

import keras
import tensorflow as tf

_SHAPE_FREE = (
    keras.initializers.Zeros,
    keras.initializers.Ones,
    keras.initializers.Constant,
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
)


@keras.saving.register_keras_serializable(package="tf_moe")
class PerExpert(keras.initializers.Initializer):
    """Fills a stacked weight `(E, ...)` as if each expert's slice were a weight of its own.

    Keras counts every axis but the last two as receptive field, so that `glorot_uniform` on `(E, D, H)` comes out too
    small by sqrt(E); and one initializer used for two weights gives both the same numbers.

    Args:
        initializer: A Keras initializer, its name or its config, for one expert's slice.
        stream: Integer. Weights that share a seeded initializer differ where their streams do. Default 0.

    Example:

    >>> PerExpert("glorot_uniform")((16, 512, 1024)).shape
    TensorShape([16, 512, 1024])
    """

    def __init__(self, initializer: Any, stream: int = 0):
        self.initializer = keras.initializers.get(initializer)
        self.stream = stream

    def __call__(self, shape, dtype=None):
        """Values of shape `shape`, whose first axis is the experts'."""
        if isinstance(self.initializer, keras.initializers.VarianceScaling) and len(shape) > 2:
            # Whatever the mode, the fan of the stacked shape is E times the slice's: one draw, put right by sqrt(E).
            return self._slice_initializer(0)(shape, dtype=dtype) * float(shape[0]) ** 0.5
        if isinstance(self.initializer, _SHAPE_FREE):
            return self._slice_initializer(0)(shape, dtype=dtype)
        return tf.stack([self._slice_initializer(e)(tuple(shape[1:]), dtype=dtype) for e in range(shape[0])])

    def _slice_initializer(self, expert: int):
        """The initializer with a seed of its own for this stream and expert; itself where it draws nothing."""
        seed = getattr(self.initializer, "seed", None)
        if not isinstance(seed, int) or (self.stream, expert) == (0, 0):
            return self.initializer
        config = self.initializer.get_config()
        config["seed"] = (seed + 7919 * self.stream + 104729 * expert) % 2**31
        return type(self.initializer).from_config(config)

    def get_config(self):
        return {"initializer": keras.initializers.serialize(self.initializer), "stream": self.stream}
