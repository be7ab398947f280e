"""From values of leading dimensions to a value for every position."""

import tensorflow as tf


def spread(values: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
    """Values of the leading dimensions of inputs `(..., D)`, or of the first of these, for every position, `(T,)`."""
    positions = inputs.shape[:-1]
    while values.shape.rank < positions.rank:
        values = tf.expand_dims(values, -1)
    values = tf.broadcast_to(values, positions if positions.is_fully_defined() else tf.shape(inputs)[:-1])
    return tf.reshape(values, [positions.num_elements() if positions.is_fully_defined() else -1])
