"""The dense layers that stand in the place of a mixture of experts, for comparison."""

from collections.abc import Sequence

import keras


def dense_feed_forward(
    hidden: Sequence[int], width: int, activation="relu", output_activation=None, name: str | None = None, dtype=None
) -> keras.Sequential:
    """Dense layers as an expert has them, without biases, over sequences that may be masked.

    Args:
        hidden: Units of each hidden layer.
        width: Of the output.
        activation: Of the hidden layers.
        output_activation: Of the output.
        name: Of the whole.
        dtype: Policy of all layers.
    """
    # By names of their own, not numbered by Keras: a map of dtype policies finds its layers by name.
    names = ["hidden"] if len(hidden) == 1 else [f"hidden_{n}" for n in range(1, len(hidden) + 1)]
    layers = [
        keras.layers.Dense(units, activation, use_bias=False, dtype=dtype, name=layer)
        for layer, units in zip(names, hidden, strict=True)
    ]
    layers.append(keras.layers.Dense(width, output_activation, use_bias=False, dtype=dtype, name="output"))
    network = keras.Sequential(layers, name=name)
    network.supports_masking = True  # its layers do, but a Sequential says no of itself
    return network
