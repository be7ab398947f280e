"""Checks of arguments that several parts share. Each message names the argument, what it must be, and what came."""

import math
import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf


def integer(name: str, value: Any, least: int = 1, hint: str = "") -> int:
    """The value as a plain `int`, which a config can hold; NumPy's integers are integers too, and booleans are not.

    Args:
        name: Name of the argument.
        value: What was received.
        least: The lowest that it may be. Default 1.
        hint: What the message says after "an integer, ... or more".

    Raises:
        ValueError: If it is no integer, or too low.
    """
    number = _index(value)
    if number is None or number < least:
        kind = "a positive integer" if least == 1 else f"an integer, {least} or more"
        raise ValueError(f"{name} must be {kind}{hint}. Received: {name}={value!r}.")
    return number


def rising(name: str, values: Sequence[int]) -> list[int]:
    """The values as plain integers; raises ValueError unless they are some, 1 or more, each over the one before."""
    values = [integer(f"{name}[{n}]", value) for n, value in enumerate(values)]
    if not values or values != sorted({*values}):
        raise ValueError(f"{name} must be rising and at least 1. Received: {name}={values}")
    return values


def seed(value: Any) -> int | None:
    """The seed of a generator of random numbers, or None; raises ValueError unless it is one of 64 bits."""
    number = _index(value)
    if value is not None and (number is None or not -(2**63) <= number < 2**63):
        raise ValueError(f"seed must be an integer of at most 64 bits, or None. Received: seed={value!r}.")
    return number


def _index(value: Any) -> int | None:
    """An integer of any type but `bool` as an `int`; None for anything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def number(name: str, value: Any, kind: str, holds: Callable[[float], bool]) -> float:
    """The value as a `float`.

    Args:
        name: Name of the argument.
        value: What was received.
        kind: What it must be, for the message: "a number, 0 or more".
        holds: Whether a number is of that kind. NaN and infinities never are.

    Raises:
        ValueError: If it is no finite number of that kind.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and holds(value)):
        raise ValueError(f"{name} must be {kind}. Received: {name}={value!r}.")
    return float(value)


def at_least_zero(name: str, value: Any) -> float:
    """The value as a `float`; raises ValueError unless it is a number, 0 or more."""
    return number(name, value, "a number, 0 or more", lambda x: x >= 0)


def zero_to_below_one(name: str, value: Any) -> float:
    """The value as a `float`; raises ValueError unless it is a number from 0 to under 1, a part but not all."""
    return number(name, value, "a number from 0 to under 1", lambda x: 0 <= x < 1)


def zero_to_one(name: str, value: Any) -> float:
    """The value as a `float`; raises ValueError unless it is a number from 0 to 1, both included."""
    return number(name, value, "a number from 0 to 1", lambda x: 0 <= x <= 1)


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """The value; raises ValueError unless it is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}. Received: {name}={value!r}.")
    return value


def activation(name: str, value: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    """The activation function of this name or config, or the value itself; raises ValueError for an unknown one."""
    return keras.activations.get(value)


def boolean(name: str, value: Any) -> bool:
    """The value; raises ValueError unless it is True or False. A word such as "no" would count as True."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False. Received: {name}={value!r}.")
    return value


def not_fixed(layer: keras.layers.Layer, name: str, value: Any, fixed: set[str]) -> None:
    """Raise AttributeError for one of the attributes that make a layer what it is: only its config would change."""
    if name in fixed and getattr(layer, "is_made", False):
        raise AttributeError(
            f"{name} of a {type(layer).__name__} is fixed when it is made. Received: {name}={value!r} for "
            f"{layer.name!r}. Make another layer: {type(layer).__name__}.from_config("
            f"{{**layer.get_config(), {name!r}: ...}})."
        )


class Checked:
    """An attribute of a layer that is checked whenever it is set: a wrong one would be saved, and not load again.

    Args:
        check: Returns what to keep, or raises ValueError: `check(name, value, *arguments)`.
        *arguments: Further arguments of it.
    """

    def __init__(self, check: Callable[..., Any], *arguments: Any):
        self.check = check
        self.arguments = arguments

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, layer, owner=None):
        if layer is None:
            return self
        try:
            return vars(layer)[self.name]
        except KeyError:
            raise AttributeError(f"{type(layer).__name__} has no {self.name} yet.") from None

    def __set__(self, layer, value):
        vars(layer)[self.name] = self.check(self.name, value, *self.arguments)


def training(value: Any) -> bool:
    """Whether a call trains; None, as Keras may have it, is False. Raises ValueError for what is no truth value."""
    if value not in (None, False, True):
        raise ValueError(f"training must be True or False. Received: training={value!r}.")
    return bool(value)


def instance(name: str, value: Any, kind: type, hint: str) -> None:
    """Raise TypeError unless the value is an object of this class; `hint` says what to pass."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}. Received: {name}={value!r}. {hint}")


def built_model(model: Any) -> None:
    """Raise TypeError unless it is a Keras model, and ValueError unless it has its weights."""
    instance("model", model, keras.Model, "Pass a model; a layer alone can be put in a keras.Sequential.")
    if not model.built:
        raise ValueError(
            f"The model must be built, so that it has its weights. Received: {model.name!r}, which is not. Begin it "
            "with a keras.Input, or call it once."
        )


def floating(what: str, inputs: tf.Tensor) -> None:
    """Raise ValueError unless inputs are floating point; `what` needs them to be."""
    if not tf.as_dtype(inputs.dtype).is_floating:
        raise ValueError(
            f"{what} needs floating point inputs. "
            f"Received: inputs of dtype {tf.as_dtype(inputs.dtype).name}. Embed or cast them first."
        )


def mask(value: Any, inputs: tf.Tensor, of_first: bool = False) -> tf.Tensor:
    """A mask of inputs `(..., D)` as booleans.

    Args:
        value: What was received.
        inputs: What it is of.
        of_first: Whether it may be of the first of the leading dimensions alone, as Keras passes a mask on where a step
            has become several positions.

    Raises:
        ValueError: If it is a text, or has not the shape of the leading dimensions, as far as shapes are known.
    """
    value = keras.ops.convert_to_tensor(value)
    if tf.as_dtype(value.dtype) == tf.string:
        raise ValueError("mask must be of booleans. Received: mask of dtype string. Pass for example ids != 0.")
    shape, positions = tf.TensorShape(value.shape), tf.TensorShape(inputs.shape)[:-1]
    if of_first and shape.rank and positions.rank:
        positions = positions[: shape.rank]
    if not positions.is_compatible_with(shape):
        or_first = ", or of the first of these" if of_first else ""
        raise ValueError(
            f"mask must have the shape of the inputs without the last dimension{or_first}. "
            f"Received: mask {tuple(value.shape)}, inputs {tuple(inputs.shape)}."
        )
    return keras.ops.cast(value, "bool")


def targets(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """Integer targets `(...)`, or `(..., 1)`, of predictions `(..., V)` as int32 `(...)`; ValueError for others."""
    if y_true.shape.rank == y_pred.shape.rank and y_true.shape[-1] == 1:
        y_true = tf.squeeze(y_true, -1)
    if not y_true.shape.is_compatible_with(y_pred.shape[:-1]):
        raise ValueError(
            "Targets must be integers of the predictions' shape without its last dimension. "
            f"Received: targets {y_true.shape}, predictions {y_pred.shape}. Pass words' numbers, not one-hot rows."
        )
    return tf.cast(y_true, tf.int32)


def sequences(name: str, shape: tf.TensorShape | tuple, width: int | None = None) -> None:
    """Raise ValueError unless a shape is (batch, time, width), of this static width, or of any if None."""
    shape = tuple(shape)
    if len(shape) != 3 or not shape[-1] or width not in (None, shape[-1]):
        kind = "a static width" if width is None else f"width {width}, as when it was built"
        raise ValueError(f"{name} must be (batch, time, width) with {kind}. Received: {name} of shape {shape}.")


def same_batch(**tensors: tf.Tensor) -> None:
    """Raise ValueError unless the named tensors have as many rows, as far as shapes are known."""
    (first, expected), *others = tensors.items()
    for name, value in others:
        if not expected.shape[:1].is_compatible_with(value.shape[:1]):
            raise ValueError(
                f"{name} must have the batch of {first}. Received: {name} {value.shape}, {first} {expected.shape}."
            )


def same_shape(**tensors: tf.Tensor) -> None:
    """Raise ValueError unless the named tensors have one shape, as far as shapes are known."""
    (first, expected), *others = tensors.items()
    for name, value in others:
        if not expected.shape.is_compatible_with(value.shape):
            raise ValueError(
                f"{name} must have the shape of {first}. Received: {name} {value.shape}, {first} {expected.shape}."
            )
