"""Gradients taken inside hand-written ones."""

from collections.abc import Callable, Sequence

import tensorflow as tf


def with_gradients(
    function: Callable[..., tf.Tensor], inputs: Sequence[tf.Tensor], persistent: bool = True
) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
    """The output of `function(*inputs)`, and a function from its gradient to those of the inputs, zero without part.

    Args:
        function: Of tensors alone.
        inputs: The tensors.
        persistent: Whether gradients can be asked for more than once. Default True. Otherwise, where nothing is traced,
            the memory of what they need is freed as they are computed.
    """
    with tf.GradientTape(persistent=persistent) as tape:
        tape.watch(inputs)
        output = function(*inputs)

    def gradients(d_output):
        return tape.gradient(output, inputs, d_output, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return output, gradients


def gradients_of(
    function: Callable[..., tf.Tensor], inputs: Sequence[tf.Tensor], d_output: tf.Tensor
) -> list[tf.Tensor]:
    """Gradients of `function(*inputs)` to each of the inputs, given that of its output; zero where one has no part."""
    _, gradients = with_gradients(function, inputs, persistent=False)
    return gradients(d_output)
