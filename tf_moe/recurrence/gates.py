"""The elementwise half of an LSTM step and its gradient: a formula for the usual activations, a tape for others."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

Tensors = tuple[tf.Tensor, ...]


class Gates(NamedTuple):
    """A step without its matrix products, and its vector-Jacobian product.

    `forward(z, c)` takes the gates before activation z [B, 4*units] (input, forget, candidate, output, as in
    Keras) and the cell state c [B, units]; it returns the output o*act(c_new), c_new, and the `num_kept` tensors
    [B, units] that `backward` needs. `backward(kept, d_output, d_c_new)` returns the gradients of z and of c.
    """

    forward: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, Tensors]]
    backward: Callable[[Tensors, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    num_kept: int


def gates_for(activation: Callable, recurrent_activation: Callable) -> Gates:
    """The gates of an LSTM with these activations (functions, as `keras.activations.get` returns them)."""
    usual = keras.activations.tanh, keras.activations.sigmoid
    if (activation, recurrent_activation) == usual:
        return Gates(_usual_forward, _usual_backward, num_kept=6)
    return _general_gates(activation, recurrent_activation)


def _usual_forward(z, c):
    i, f, g, o = tf.split(z, 4, axis=-1)
    i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
    c_new = f * c + i * g
    tanh_c = tf.tanh(c_new)
    return o * tanh_c, c_new, (i, f, g, o, c, tanh_c)


def _usual_backward(kept, d_output, d_c):
    i, f, g, o, c, tanh_c = kept
    d_c += _tanh_grad(tanh_c, d_output * o)
    dz = [
        _sigmoid_grad(i, d_c * g),
        _sigmoid_grad(f, d_c * c),
        _tanh_grad(g, d_c * i),
        _sigmoid_grad(o, d_output * tanh_c),
    ]
    return tf.concat(dz, axis=-1), d_c * f


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

    def backward(kept, d_output, d_c):
        with tf.GradientTape() as tape:
            tape.watch(kept)
            outputs = step(*kept)
        *dz, d_c = tape.gradient(
            outputs,
            kept,
            output_gradients=(d_output, d_c),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return tf.concat(dz, axis=-1), d_c

    return Gates(forward, backward, num_kept=5)
