"""The elementwise half of an LSTM step and its gradient: a formula for the usual activations, a tape for others."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf


class LSTMGates(NamedTuple):
    """A step without its matrix products, and its vector-Jacobian product in two halves.

    The gates before activation are z [B, 4*units]: input, forget, candidate, output, as in Keras.

    Attributes:
        forward: `forward(z, c)` takes z and the cell state c [B, units]; returns the output o*act(c_new), c_new, and a
            tuple of what the backward pass needs.
        num_kept: Length of that tuple, of tensors [B, units].
        outputs: `outputs(*kept)` takes what was kept of all steps, [T, B, units]; returns the outputs again.
        prepare: `prepare(*kept)` takes the same; returns tensors [T, ...], what a step of the backward pass needs,
            computed for all steps at once and out of the loop.
        backward: `backward(prepared, d_output, d_c_new)` takes a step of these and the gradients of the output and of
            c_new; returns those of z and of c.
    """

    forward: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, ...]]]
    num_kept: int
    outputs: Callable[..., tf.Tensor]
    prepare: Callable[..., tuple[tf.Tensor, ...]]
    backward: Callable[[Sequence[tf.Tensor], tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def lstm_gates_for(activation: Callable, recurrent_activation: Callable) -> LSTMGates:
    """The gates of an LSTM with these activations (functions, as `keras.activations.get` returns them)."""
    usual = keras.activations.tanh, keras.activations.sigmoid
    if (activation, recurrent_activation) == usual:
        return LSTMGates(_usual_forward, 6, _usual_outputs, _usual_prepare, _usual_backward)
    return _general_gates(activation, recurrent_activation)


def _usual_forward(z, c):
    i, f, g, o = tf.split(z, 4, axis=-1)
    i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
    c_new = f * c + i * g
    tanh_c = tf.tanh(c_new)
    return o * tanh_c, c_new, (i, f, g, o, c, tanh_c)


def _usual_outputs(i, f, g, o, c, tanh_c):
    return o * tanh_c


def _usual_prepare(i, f, g, o, c, tanh_c):
    """The derivatives: of c_new by the first three gates, of the output by c_new and by o, of c_new by c."""
    by_gates = _sigmoid_grad(i, g), _sigmoid_grad(f, c), _tanh_grad(g, i)
    return *by_gates, _tanh_grad(tanh_c, o), _sigmoid_grad(o, tanh_c), f


def _usual_backward(prepared, d_output, d_c):
    by_i, by_f, by_g, output_by_c, output_by_o, c_by_c = prepared
    d_c += d_output * output_by_c
    return tf.concat([d_c * by_i, d_c * by_f, d_c * by_g, d_output * output_by_o], axis=-1), d_c * c_by_c


def _sigmoid_grad(y, dy):
    return tf.raw_ops.SigmoidGrad(y=y, dy=dy)  # dy * y * (1 - y) in one operation


def _tanh_grad(y, dy):
    return tf.raw_ops.TanhGrad(y=y, dy=dy)  # dy * (1 - y**2)


def _general_gates(activation, recurrent_activation):
    def step(i, f, g, o, c):
        c_new = recurrent_activation(f) * c + recurrent_activation(i) * activation(g)
        return recurrent_activation(o) * activation(c_new), c_new

    def forward(z, c):
        kept = *tf.split(z, 4, axis=-1), c
        return *step(*kept), kept

    def outputs(*kept):
        return step(*kept)[0]

    def prepare(*kept):
        return kept

    def backward(prepared, d_output, d_c):
        with tf.GradientTape() as tape:
            tape.watch(prepared)
            results = step(*prepared)
        zero = tf.UnconnectedGradients.ZERO
        *d_z, d_c = tape.gradient(results, prepared, output_gradients=(d_output, d_c), unconnected_gradients=zero)
        return tf.concat(d_z, axis=-1), d_c

    return LSTMGates(forward, 5, outputs, prepare, backward)
