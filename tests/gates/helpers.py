"""What the tests of all gates share."""

import itertools

import numpy as np
import tensorflow as tf


def fix_noise(gate, *values):
    """Make the gate draw the given arrays, one a draw, and around again; as uniform numbers, their shares below."""
    source = itertools.cycle([GivenNoise(v) for v in values])
    gate.new_noise = lambda: next(source)
    gate.uniform_noise = lambda shape: 0.5 * (1.0 + tf.math.erf(gate.noise(shape) / 2**0.5))


class GivenNoise:
    """In the place of `Noise`, with the numbers of an array."""

    def __init__(self, numbers):
        self._numbers = tf.constant(numbers, tf.float32)

    def whole(self, shape):
        tf.debugging.assert_equal(shape, self._numbers.shape)
        return self._numbers

    def rows(self, start, rows, columns):
        tf.debugging.assert_equal(columns, self._numbers.shape[1])
        return self._numbers[start : start + rows]


class NoNoise:
    """In the place of `Noise`: zeros."""

    def whole(self, shape):
        return tf.zeros(shape)

    def rows(self, start, rows, columns):
        return tf.zeros([rows, columns])


def dense(routing, num_experts):
    """Gate values as a matrix (T, E), differentiable."""
    return tf.einsum("tke,tk->te", tf.one_hot(routing.expert_index, num_experts), routing.combine_weights)


def set_weights(gate, width, **values):
    """Build the gate for tokens of a width, and give its weights values by name."""
    gate.build((None, width))
    for name, value in values.items():
        getattr(gate, name).assign(value)
    return gate


def random_weights(gate, width, rng, scale=0.5):
    """Build the gate for tokens of a width, and give all its weights random values."""
    gate.build((None, width))
    for weight in gate.trainable_variables:
        weight.assign(scale * rng.standard_normal(weight.shape))
    return gate


def skewed(gate, x):
    """The gate and tokens that share a feature for which some experts are everybody's favourites."""
    gate.kernel.assign(np.concatenate([[np.linspace(0, 4, gate.num_experts)], gate.kernel.numpy()[1:]]))
    x[:, 0] = 1.0
    return gate, x


def measure(gate, x, experts, coefficients, **kwargs):
    """A scalar of gate values, importance and load, each times coefficients; its gradients to the gate's weights."""
    over_gates, over_importance, over_load = (tf.constant(c, tf.float32) for c in coefficients)
    with tf.GradientTape() as tape:
        routing = gate(tf.constant(x, tf.float32), **kwargs)
        y = tf.reduce_sum(over_gates * dense(routing, experts))
        y += tf.reduce_sum(over_importance * routing.importance) + tf.reduce_sum(over_load * routing.load)
    return y, tape.gradient(y, gate.trainable_variables)


def coefficients_for(rng, tokens, experts):
    return rng.standard_normal((tokens, experts)), rng.standard_normal(experts), rng.standard_normal(experts)
