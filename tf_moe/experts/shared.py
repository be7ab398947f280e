"""The expert that every token goes to."""

import keras
import tensorflow as tf

from tf_moe.initializers import of_stream
from tf_moe.ops.bias import add_bias

HIDDEN_STREAM, OUTPUT_STREAM = 2, 3  # those of the other experts' kernels are 0 and 1, see `FeedForward`


def make_shared_expert(
    units: int,
    width: int,
    *,
    activation,
    use_bias: bool,
    dropout: float,
    seed: int | None,
    kernel_initializer,
    kernel_regularizer,
    kernel_constraint,
    dtype,
) -> keras.Sequential:
    """A dense network of one hidden layer with `units` units, its output linear; built.

    Args:
        units: Width of the hidden layer.
        width: Of input and output.
        activation: Of the hidden layer.
        use_bias: Whether both layers have biases.
        dropout: Share of the hidden units dropped in training.
        seed: Of the dropout, or None.
        kernel_initializer: Of both kernels, which start with other numbers than one another and the other experts.
        kernel_regularizer: Of both kernels.
        kernel_constraint: Of both kernels.
        dtype: The policy of all layers.
    """

    def dense(name, units, activation, stream):
        return Dense(
            units,
            activation,
            use_bias=use_bias,
            kernel_initializer=of_stream(kernel_initializer, stream),
            kernel_regularizer=kernel_regularizer,
            kernel_constraint=kernel_constraint,
            dtype=dtype,
            name=name,
        )

    drop = keras.layers.Dropout(dropout, seed=seed, dtype=dtype)
    layers = [dense("hidden", units, activation, HIDDEN_STREAM), drop, dense("output", width, None, OUTPUT_STREAM)]
    network = keras.Sequential(layers, name="shared_expert")
    network.build((None, width))
    return network


class Dense(keras.layers.Dense):
    """A keras.layers.Dense whose bias has the right gradient in half precision, see `add_bias`.

    The name is Keras's too, since files call the weights of a `keras.Sequential` by the classes of its layers.
    """

    def call(self, inputs, training=None):
        outputs = tf.matmul(inputs, tf.convert_to_tensor(self.kernel))
        if self.bias is not None:
            outputs = add_bias(outputs, tf.convert_to_tensor(self.bias))
        return outputs if self.activation is None else self.activation(outputs)

    def quantize(self, mode=None, type_check=True, config=None):
        return super().quantize(mode, type_check=False, config=config)  # Keras's check refuses all subclasses
