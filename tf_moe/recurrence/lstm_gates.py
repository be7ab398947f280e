"""The elementwise half of an LSTM step and its gradient: a formula for the usual activations, a tape for others.

A step without its matrix products, and its vector-Jacobian product in two halves. The gates before activation are
z [B, 4*units]: input, forget, candidate, output, as in Keras.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf


class TanhSigmoidGates:
    """The usual activations, tanh and sigmoid, whose derivatives follow from the values that are kept.

    Attributes:
        num_kept: How many tensors [B, units] of a step the backward pass needs.
    """

    num_kept = 6

    @staticmethod
    def forward(z: tf.Tensor, c: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, ...]]:
        """From z and the cell state c [B, units]: the output o*tanh(c_new), c_new, and what is kept."""
        i, f, g, o = tf.split(z, 4, axis=-1)
        i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
        c_new = f * c + i * g
        tanh_c = tf.tanh(c_new)
        return o * tanh_c, c_new, (i, f, g, o, c, tanh_c)

    @staticmethod
    def outputs(i: tf.Tensor, f: tf.Tensor, g: tf.Tensor, o: tf.Tensor, c: tf.Tensor, tanh_c: tf.Tensor) -> tf.Tensor:
        """The outputs again, from what was kept of all steps, [T, B, units]."""
        return o * tanh_c

    @staticmethod
    def prepare(
        i: tf.Tensor, f: tf.Tensor, g: tf.Tensor, o: tf.Tensor, c: tf.Tensor, tanh_c: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """What a step of the backward pass needs, computed for all steps at once and out of the loop.

        The derivatives: of c_new by the first three gates, of the output by c_new and by o, of c_new by c.
        """
        by_gates = _sigmoid_grad(i, g), _sigmoid_grad(f, c), _tanh_grad(g, i)
        return *by_gates, _tanh_grad(tanh_c, o), _sigmoid_grad(o, tanh_c), f

    @staticmethod
    def backward(prepared: Sequence[tf.Tensor], d_output: tf.Tensor, d_c: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """From a step of what was prepared and the gradients of the output and of c_new: those of z and of c."""
        by_i, by_f, by_g, output_by_c, output_by_o, c_by_c = prepared
        d_c += d_output * output_by_c
        return tf.concat([d_c * by_i, d_c * by_f, d_c * by_g, d_output * output_by_o], axis=-1), d_c * c_by_c


class AnyGates:
    """Any activations; a tape in the backward pass computes each step again. Methods as in `TanhSigmoidGates`."""

    num_kept = 5

    def __init__(self, activation: Callable, recurrent_activation: Callable):
        self.activation = activation
        self.recurrent_activation = recurrent_activation

    def _step(self, i, f, g, o, c):
        c_new = self.recurrent_activation(f) * c + self.recurrent_activation(i) * self.activation(g)
        return self.recurrent_activation(o) * self.activation(c_new), c_new

    def forward(self, z: tf.Tensor, c: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, ...]]:
        """The output, c_new, and what is kept."""
        kept = *tf.split(z, 4, axis=-1), c
        return *self._step(*kept), kept

    def outputs(self, *kept: tf.Tensor) -> tf.Tensor:
        """The outputs of all steps again."""
        return self._step(*kept)[0]

    def prepare(self, *kept: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """What was kept: nothing can be computed for all steps at once."""
        return kept

    def backward(
        self, prepared: Sequence[tf.Tensor], d_output: tf.Tensor, d_c: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The gradients of z and of c."""
        with tf.GradientTape() as tape:
            tape.watch(prepared)
            results = self._step(*prepared)
        zero = tf.UnconnectedGradients.ZERO
        *d_z, d_c = tape.gradient(results, prepared, output_gradients=(d_output, d_c), unconnected_gradients=zero)
        return tf.concat(d_z, axis=-1), d_c


LSTMGates = type[TanhSigmoidGates] | AnyGates


def lstm_gates_for(activation: Callable, recurrent_activation: Callable) -> LSTMGates:
    """The gates of an LSTM with these activations (functions, as `keras.activations.get` returns them)."""
    usual = keras.activations.tanh, keras.activations.sigmoid
    if (activation, recurrent_activation) == usual:
        return TanhSigmoidGates
    return AnyGates(activation, recurrent_activation)


def _sigmoid_grad(y, dy):
    return tf.raw_ops.SigmoidGrad(y=y, dy=dy)  # dy * y * (1 - y) in one operation


def _tanh_grad(y, dy):
    return tf.raw_ops.TanhGrad(y=y, dy=dy)  # dy * (1 - y**2)
