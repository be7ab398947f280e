"""The arithmetic of `FactoredAdam`, on tensors and on variables.

`scalars` are learning rate, step, beta_1, beta_2 and epsilon, in the slots' dtype. All is computed in it: a weight may
be in half precision, where a beta_2 of 0.999 would be 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

Value = tf.Tensor | tf.Variable | keras.Variable


class State(NamedTuple):
    """A weight and its slots: all tensors, or all variables.

    Attributes:
        weight: `(..., D, H)`.
        moments: Second moments of rows `(..., D)` and of columns `(..., H)`; or one, shaped as the weight.
        momentum: The average gradient, shaped as the weight; or nothing.
    """

    weight: Value
    moments: tuple[Value, ...]
    momentum: tuple[Value, ...] = ()


def update(state: State, gradient: tf.Tensor, scalars: Sequence[tf.Tensor]) -> State:
    """The next state."""
    learning_rate, step, beta_1, beta_2, epsilon = scalars
    weight, gradient = (tf.cast(x, step.dtype) for x in (state.weight, gradient))
    square = gradient * gradient
    squares = [square] if len(state.moments) == 1 else [tf.reduce_mean(square, -1), tf.reduce_mean(square, -2)]
    moments = tuple(beta_2 * v + (1 - beta_2) * s for v, s in zip(state.moments, squares, strict=True))
    momentum = tuple(beta_1 * m + (1 - beta_1) * gradient for m in state.momentum)
    if momentum:
        gradient = momentum[0] / (1 - beta_1**step)
    root = _root(moments) / tf.sqrt(1 - beta_2**step)
    weight -= learning_rate * gradient / (root + epsilon)
    return State(tf.cast(weight, state.weight.dtype), moments, momentum)


def _root(moments):
    """The root of the second moment: of the rank-one matrix that has these row and column averages."""
    if len(moments) == 1:
        return tf.sqrt(moments[0])
    rows, columns = moments
    rows = tf.math.divide_no_nan(rows, tf.reduce_mean(rows, axis=-1, keepdims=True))
    return tf.expand_dims(tf.sqrt(rows), -1) * tf.expand_dims(tf.sqrt(columns), -2)


def update_in_place(variables: State, gradient: tf.Tensor, scalars: Sequence[tf.Tensor]) -> None:
    """Update a factored weight and its slots where they are, matrix by matrix; to be compiled by XLA.

    XLA lends its program the memory of a variable that is read and assigned, and the loop writes into it. So nothing of
    the size of a stack is made, and a matrix is still in the processor's cache when it is needed for the second time.
    """
    state = tf.nest.map_structure(tf.convert_to_tensor, variables)
    new = update(state, gradient, scalars) if gradient.shape.rank == 2 else _update_each(state, gradient, scalars)
    tf.nest.map_structure(lambda variable, value: variable.assign(value), variables, new)


def _update_each(state, gradient, scalars):
    *stack, _, _ = gradient.shape
    size = tf.TensorShape(stack).num_elements()
    gradients, old = tf.nest.map_structure(lambda x: tf.reshape(x, [size, *x.shape[len(stack) :]]), (gradient, state))

    def body(n, new):
        # New moments are written beside the old ones: XLA would copy all of them in every turn to read and write the
        # same. Of the other stacks, whose slices are only read to be written again, it copies nothing.
        now = State(new.weight, old.moments, new.momentum)
        values = update(tf.nest.map_structure(lambda x: _read(x, n), now), _read(gradients, n), scalars)
        return n + 1, tf.nest.map_structure(lambda x, value: _write(x, n, value), new, values)

    start = State(old.weight, tuple(map(tf.zeros_like, old.moments)), old.momentum)
    _, new = tf.while_loop(lambda n, _: n < size, body, (0, start), maximum_iterations=size)
    return tf.nest.map_structure(lambda x, like: tf.reshape(x, like.shape), new, state)


def _read(stack, n):
    """A slice; unlike `stack[n]` without the question whether n is negative, which hides that it is the one written."""
    return tf.squeeze(tf.slice(stack, [n] + [0] * (stack.shape.rank - 1), [1, *stack.shape[1:]]), 0)


def _write(stack, n, value):
    return tf.tensor_scatter_nd_update(stack, tf.reshape(n, [1, 1]), tf.expand_dims(value, 0))
