"""Memory that training a model takes, by part, predicted from its built Keras layers."""

import math
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_moe import checks
from tf_moe.analysis.counts import leaves
from tf_moe.dispatch import capacity_of
from tf_moe.gates import NoisyTopK
from tf_moe.gates.choice import keeps_only_logits
from tf_moe.layers import SparseMoE
from tf_moe.ops.hot_groups import cheapest_places

# Float32 numbers that a gate keeps for each token and expert: noise, its deviation, noisy logits, and what the
# derivatives of the load estimate need.
_OF_GATE = 8
_OF_GATE_LOGITS = 4  # both logits and their gradients


class Memory(NamedTuple):
    """Bytes, by what they are for.

    Attributes:
        weights: Of all weights, trainable or not, but for the states of random generators.
        gradients: Of the trainable ones.
        slots: Of the optimizer; 0 where the model has none, or one that was not built.
        activations: What the forward pass keeps for the backward pass, and beside it the gradients of one layer and
            what that computes again: of the layer where both are largest.

    Example:

    >>> memory = tf_moe.analysis.training_memory(model, tokens=1024)
    >>> memory.gradients == memory.weights, memory.activations > 4 * 1024 * 50  # the logits, and more
    (True, True)
    """

    weights: int
    gradients: int
    slots: int
    activations: int

    @property
    def total(self) -> int:
        """All of it, which is what a training step needs at its peak."""
        return sum(self)


def training_memory(model: keras.Model, tokens: int) -> Memory:
    """Predict the memory of a training step on one device.

    Layers are taken to keep their outputs, an LSTM its gates, a mixture the rows of its experts, for loads as even
    as chance leaves them, or as many as its `capacity_factor` says. Of experts that are Keras layers only inputs and
    outputs are counted, not what they keep inside. A gate is taken to run in a graph, outside of XLA. What TensorFlow's
    programs and its allocator take beside that is not counted: some hundreds of megabytes, and up to a third.

    Args:
        model: A built Keras model, Sequential or functional. For its slots to be counted the optimizer has to be built
            as well, by a step or `model.optimizer.build(model.trainable_variables)`.
        tokens: Positions in a batch: its size times the time steps.

    Returns:
        A `Memory`.

    Raises:
        TypeError: If it is no Keras model.
        ValueError: If it is not built, or is a model of another kind, such as a `Translator`, which does not tell what
            its layers' outputs are; or `tokens` not a positive integer.

    Example:

    >>> model = keras.Sequential([keras.Input((None, 8)), tf_moe.layers.SparseMoE(4, 16, k=2), keras.layers.Dense(100)])
    >>> memory = tf_moe.analysis.training_memory(model, tokens=32)
    >>> memory.weights == memory.gradients == 4 * (2 * 8 * 4 + 4 * 2 * 8 * 16 + 8 * 100 + 100)
    True

    Reference: appendix D of Shazeer et al. (2017) says what its largest models save.
    """
    checks.built_model(model)
    checks.integer("tokens", tokens)
    gradients = model.trainable_weights
    optimizer = getattr(model, "optimizer", None)
    slots = optimizer.variables if optimizer is not None and optimizer.built else []
    layers = list(leaves(model))
    kept = [_kept(layer, tokens) for layer in layers]
    # While a layer is differentiated it has the gradients of what it kept; and what it did not keep, with gradients.
    own = [size + 2 * _computed_again(layer, tokens) for size, layer in zip(kept, layers, strict=True)]
    return Memory(_bytes(model.weights), _bytes(gradients), _bytes(slots), sum(kept) + max(own))


def _bytes(variables) -> int:
    return sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables)


def _kept(layer, tokens: int) -> int:
    """Bytes that a layer keeps for its backward pass."""
    number = tf.as_dtype(layer.compute_dtype).size
    if isinstance(layer, SparseMoE):
        return _kept_by_moe(layer, tokens, number)
    if isinstance(layer, keras.layers.Bidirectional):
        lstms = [layer.forward_layer, layer.backward_layer]
        if all(isinstance(one, keras.layers.LSTM) for one in lstms):
            return sum(_kept(one, tokens) for one in lstms)
    if isinstance(layer, keras.layers.LSTM):
        cell = layer.cell
        return number * tokens * (6 * cell.units + 2 * cell.output_size + cell.kernel.shape[0])
    return number * tokens * _width(layer)


def _width(layer) -> int:
    """Numbers that a layer gives out for a token; of ids, whose shape has no width, one."""
    try:
        outputs = keras.tree.flatten(layer.output)
    except AttributeError as error:
        raise ValueError(
            "The memory of Sequential and functional models can be predicted. Received: a model whose layer "
            f"{layer.name!r} has no output of its own."
        ) from error
    return sum(output.shape[-1] or 1 for output in outputs)


def _kept_by_moe(layer: SparseMoE, tokens: int, number: int) -> int:
    width = _width(layer)
    hidden = 0 if layer.recompute or layer.expert is not None else layer.expert_hidden
    of_token = 2 * layer.shared_expert_hidden + 2 * width if layer.shared_expert_hidden else width
    gate = layer.gate
    only_logits = (
        isinstance(gate, NoisyTopK) and gate.noisy and keeps_only_logits(gate.num_experts, gate.k, gate.normalize)
    )
    of_token = (_OF_GATE_LOGITS if only_logits else _OF_GATE) * layer.num_logits * 4 + of_token * number
    return _rows(layer, tokens) * (2 * width + hidden) * number + tokens * of_token


def _computed_again(layer, tokens: int) -> int:
    """Bytes of the hidden activations that a mixture with `recompute` does not keep."""
    if not isinstance(layer, SparseMoE) or not layer.recompute or layer.expert is not None:
        return 0
    return _rows(layer, tokens) * layer.expert_hidden * tf.as_dtype(layer.compute_dtype).size


def _rows(layer: SparseMoE, tokens: int) -> int:
    """Rows that a layer's experts get, empty ones included."""
    experts, k = layer.total_experts, layer.total_k
    if layer.capacity_factor is not None:
        return experts * capacity_of(tokens, experts, k, layer.capacity_factor)
    if not layer.experts.takes_block(training=True):
        return k * tokens
    loads = np.random.default_rng(0).multinomial(k * tokens, [1 / experts] * experts)
    places = int(cheapest_places(loads.astype("int32")))
    return experts * places + int(np.maximum(loads - places, 0).sum())
