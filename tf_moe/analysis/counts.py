"""Parameters and arithmetic of a network by the paper's counting rule, from its built Keras layers."""

import math
from typing import NamedTuple

import keras

from tf_moe import checks
from tf_moe.gates.cost import multiply_adds
from tf_moe.layers import AttentiveLSTM, SparseMoE


class Counts(NamedTuple):
    """What a network costs.

    Attributes:
        parameters: Number of weights, biases left out.
        multiply_adds: Multiply-adds of the forward pass for one time step.

    Example:

    >>> tf_moe.analysis.count(model).multiply_adds  # gate, and two experts of eight
    640
    """

    parameters: int
    multiply_adds: int


def count(model: keras.Model) -> Counts:
    """Parameters and multiply-adds a time step of a built model, without its embedding and its softmax.

    The paper's rule: multiply-adds, no biases; an LSTM 4 h (in + recurrent) plus its projection; a dense layer in times
    out; a mixture of experts k times one expert plus the gate's matrices, W_g and with noise W_noise, plus a shared
    expert. Elementwise work is left out. The softmax is taken to be the last layer with weights.

    Args:
        model: A built Keras model of embedding, recurrent, dense and SparseMoE layers, in the order they are called,
            each once.

    Raises:
        ValueError: If a layer with weights is of a kind that the rule does not cover, or the model is not built.
        TypeError: If `model` is no `keras.Model`.

    Example:

    >>> model = keras.Sequential([keras.layers.Input((None, 4)), keras.layers.Dense(8), keras.layers.Dense(100)])
    >>> tf_moe.analysis.count(model)  # the last layer is the softmax
    Counts(parameters=32, multiply_adds=32)

    Reference: the columns ops/timestep and #Params of table 7 of Shazeer et al. (2017).
    """
    checks.built_model(model)
    with_weights = [layer for layer in leaves(model) if layer.weights]
    counts = [_count_layer(layer) for layer in with_weights[:-1] if not isinstance(layer, keras.layers.Embedding)]
    return Counts(sum(c.parameters for c in counts), sum(c.multiply_adds for c in counts))


def leaves(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model and of the models among them, without the inputs of these, which other layers gave out."""
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += [leaf for leaf in leaves(layer) if not isinstance(leaf, keras.layers.InputLayer)]
        else:
            found.append(layer)
    return found


def _count_layer(layer: keras.layers.Layer) -> Counts:
    if isinstance(layer, SparseMoE):
        return _count_moe(layer)
    if isinstance(layer, (keras.layers.Dense, keras.layers.LSTM, AttentiveLSTM)):
        size = _size_of_matrices(layer)  # each is used once a time step
        return Counts(size, size)
    raise ValueError(
        "Only Embedding, Dense, LSTM, AttentiveLSTM and SparseMoE layers with weights can be counted. "
        f"Received: {layer.name!r} of type {type(layer).__name__}."
    )


def _count_moe(layer: SparseMoE) -> Counts:
    experts, gate = _size_of_matrices(layer.experts), _size_of_matrices(layer.gate)
    for_all = _size_of_matrices(layer.shared_expert) if layer.shared_expert else 0
    return Counts(
        experts + gate + for_all, experts * layer.total_k // layer.total_experts + multiply_adds(layer.gate) + for_all
    )


def _size_of_matrices(layer: keras.layers.Layer) -> int:
    return sum(math.prod(w.shape) for w in layer.weights if _is_matrix(w))


def _is_matrix(weight) -> bool:
    """Biases are vectors, also where they are stacked over experts, and so are the scales of quantized kernels."""
    return len(weight.shape) >= 2 and not weight.name.endswith(("bias", "scale"))
