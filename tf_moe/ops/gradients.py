"""Gradients taken inside hand-written ones."""

from collections.abc import Callable, Sequence

import tensorflow as tf


def gradients_of(
    function: Callable[..., tf.Tensor], inputs: Sequence[tf.Tensor], d_output: tf.Tensor
) -> list[tf.Tensor]:
    """Gradients of `function(*inputs)` to each of the inputs, given that of its output; zero where one has no part."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        output = function(*inputs)
    return tape.gradient(output, inputs, d_output, unconnected_gradients=tf.UnconnectedGradients.ZERO)
