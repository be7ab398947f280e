"""Initial values for weights that are stacked over experts."""

import math
from collections.abc import Callable

import keras
import tensorflow as tf

from tf_moe.mesh.new_variables import initialized_experts

__all__ = ["PerExpert"]

# Up to so many values are drawn at once, for speed; beyond, expert by expert, so that a device can make just its own.
LARGEST_DRAW = 2**24

_SHAPE_FREE = (
    keras.initializers.Zeros,
    keras.initializers.Ones,
    keras.initializers.Constant,
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
)

Initializer = str | dict | Callable | keras.initializers.Initializer


@keras.saving.register_keras_serializable(package="tf_moe")
class PerExpert(keras.initializers.Initializer):
    """Fills a stacked weight `(E, ...)` as if each expert's slice were a weight of its own.

    Keras counts every axis but the last two as receptive field, so that `glorot_uniform` on `(E, D, H)` comes out too
    small by sqrt(E); and one initializer used for two weights gives both the same numbers.

    Args:
        initializer: A Keras initializer, its name or its config, for one expert's slice.
        stream: Integer. Weights that share a seeded initializer differ where their streams do. Default 0.

    Example:

    >>> tf_moe.initializers.PerExpert("glorot_uniform")((4, 16, 32)).shape
    TensorShape([4, 16, 32])
    """

    def __init__(self, initializer: Initializer, stream: int = 0):
        self.initializer = keras.initializers.get(initializer)
        self.stream = stream

    def __call__(self, shape, dtype=None):
        """Values of shape `shape`, whose first axis is the experts'.

        Inside `tf_moe.mesh.new_variables.initializing(start, stop)` just those of these experts, with the same numbers.
        """
        start, stop = initialized_experts() or (0, shape[0])
        if self._can_be_stacked(shape) and math.prod(shape) <= LARGEST_DRAW:
            return self._draw(0, shape, dtype)[start:stop]
        draws = (self._draw(e, (1, *shape[1:]), dtype) for e in range(start, stop))
        if not tf.executing_eagerly():
            return tf.concat(list(draws), axis=0)
        # Written where they belong, one at a time: joined at the end they would take twice the memory.
        values = None
        for n, draw in enumerate(draws):
            if values is None:
                values = tf.raw_ops.Empty(shape=(stop - start, *shape[1:]), dtype=draw.dtype)
            values = tf.raw_ops.InplaceUpdate(x=values, i=[n], v=draw)
        return values

    def _can_be_stacked(self, shape) -> bool:
        """Whether the initializer can draw for several experts at once."""
        if isinstance(self.initializer, keras.initializers.VarianceScaling):
            return len(shape) > 2  # of a matrix the first axis is taken for the inputs
        return isinstance(self.initializer, _SHAPE_FREE)

    def _draw(self, expert: int, shape: tuple[int, ...], dtype: str | None) -> tf.Tensor:
        """Values `(n, ...)` of n experts from this one on; of it alone by an initializer that can do no more."""
        initializer = _with_own_seed(self.initializer, self.stream, expert)
        if not self._can_be_stacked(shape):
            return tf.expand_dims(initializer(tuple(shape[1:]), dtype=dtype), 0)
        values = initializer(shape, dtype=dtype)
        if isinstance(initializer, keras.initializers.VarianceScaling):
            # Whatever the mode, the fan of the stacked shape is n times the slice's: put right by sqrt(n).
            values *= float(shape[0]) ** 0.5
        return values

    def get_config(self):
        return {"initializer": keras.initializers.serialize(self.initializer), "stream": self.stream}


def of_stream(initializer: Initializer, stream: int) -> keras.initializers.Initializer | Callable:
    """A copy of the initializer for one of several weights, or all of them would start with the same numbers.

    Args:
        initializer: A Keras initializer, its name or its config.
        stream: Integer, another one for each weight. The seed is what `PerExpert` with this stream has for expert 0.
    """
    if isinstance(initializer, keras.initializers.Initializer):
        initializer = initializer.clone()  # without a seed of the user's, the copy has a new one in every layer
    return _with_own_seed(keras.initializers.get(initializer), stream)


def _with_own_seed(
    initializer: keras.initializers.Initializer | Callable, stream: int, expert: int = 0
) -> keras.initializers.Initializer | Callable:
    """The initializer with a seed of its own for this stream and expert; itself where it draws nothing."""
    seed = getattr(initializer, "seed", None)
    if not isinstance(seed, int) or (stream, expert) == (0, 0):
        return initializer
    config = initializer.get_config()
    config["seed"] = (seed + 7919 * stream + 104729 * expert) % 2**31
    return type(initializer).from_config(config)
