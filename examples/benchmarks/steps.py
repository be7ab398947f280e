"""Training steps that several benchmarks of this folder time: forward and backward pass, for inputs and weights."""

import tensorflow as tf

from tf_moe.losses import cv_squared


def floor(rows, width, hidden):
    """A step of two dense products with as many rows: what cannot be saved."""
    x, first, second, d_y = (
        tf.random.normal(shape) for shape in ((rows, width), (width, hidden), (hidden, width), (rows, width))
    )

    @tf.function
    def step(x, first, second, d_y):
        with tf.GradientTape() as tape:
            tape.watch([x, first, second])
            y = tf.matmul(tf.nn.relu(tf.matmul(x, first)), second)
        return y, tape.gradient(y, [x, first, second], d_y)

    return lambda *_: step(x, first, second, d_y)


def gate_step(gate, width):
    """A step of a gate, which it builds, with both losses."""
    gate.build((None, width))
    weights = [w.value for w in gate.trainable_weights]

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            routing = gate(x, training=True)
            loss = cv_squared(routing.importance) + cv_squared(routing.load)
            loss += tf.reduce_sum(routing.combine_weights[:, 0])
        return tape.gradient(loss, [x, *weights])

    return step


def sum_of_squares(_, outputs):
    return tf.reduce_sum(outputs**2)


def layer_step(layer, loss=sum_of_squares):
    """A step of a built layer, with its own losses, under `loss(targets, outputs)`."""
    weights = [w.value for w in layer.trainable_weights]

    @tf.function
    def step(x, targets=None):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = loss(targets, layer(x, training=True))
            total += tf.add_n(layer.losses) if layer.losses else 0.0
        return total, tape.gradient(total, [x, *weights])

    return step
