"""Fewer experts in a trained mixture: leaving the least used ones out, or averaging those that are alike."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tf_moe import checks, gates
from tf_moe.analysis import Usage
from tf_moe.conversion.alike import group_alike
from tf_moe.conversion.rebuild import moe_layers, rebuild
from tf_moe.layers import SparseMoE

Loads = Usage | Sequence[float] | np.ndarray


def prune_experts(layer: SparseMoE, keep: int | Sequence[int], usage: Loads | None = None) -> SparseMoE:
    """The layer with some of its experts alone: tokens that went to others go to the best of those that are left.

    Args:
        layer: A built layer with the gate `NoisyTopK`; its experts may be quantized, or Keras layers. It is left as it
            is.
        keep: The experts that are kept, each once; or how many, the most used ones.
        usage: How much each expert is used, `(E,)`: a `Usage`, from `tf_moe.analysis.measure_usage`, of which the load
            counts, or loads. Only where `keep` is a number.

    Returns:
        A built layer of the same name, experts in their order before, with a gate of its own.

    Raises:
        ValueError: If the layer is not built or has another gate, `keep` names no experts of the layer, or fewer than
            its `k`, or `usage` is missing or does not fit.
        TypeError: If it is no SparseMoE.

    Example:

    >>> usage = tf_moe.analysis.measure_usage(model, dataset)
    >>> tf_moe.conversion.prune_experts(model.get_layer("moe"), keep=4, usage=usage["moe"]).num_experts
    4
    """
    _check_layer(layer)
    if not isinstance(keep, (list, tuple, range, np.ndarray)):
        number = _number_of_experts("keep", keep, layer)
        if usage is None:
            raise ValueError(
                f"keep={number} keeps the most used experts, for which usage is needed. Received: usage=None. Pass "
                "that of tf_moe.analysis.measure_usage, or the experts to keep."
            )
        keep = np.argsort(-_loads(usage, layer), kind="stable")[:number]
    elif usage is not None:
        raise ValueError(f"usage says which experts to keep, and so does keep. Received: both, and keep={keep!r}.")
    kept = _members("keep", [keep], layer)[0]
    return _smaller(layer, [[e] for e in kept], np.ones(layer.num_experts))


def merge_experts(layer: SparseMoE, groups: int | Sequence[Sequence[int]], usage: Loads | None = None) -> SparseMoE:
    """The layer with each group of its experts averaged into one, and their columns of the gate likewise.

    It is for experts that began as copies of one another, as `upcycle` makes them, or otherwise are nearly the same.
    Hidden units are averaged with those at the same place: experts that were trained apart from the first have their
    units in other orders, and the average of two is worth little. `prune_experts` is for those.

    Args:
        layer: A built layer with the gate `NoisyTopK` and the built-in experts. It is left as it is.
        groups: The experts of each group, which together are all; or the number of groups, which are then found by
            Ward's method, by the distances between weights and by the loads.
        usage: How much each expert counts in the average, `(E,)`: a `Usage`, from `tf_moe.analysis.measure_usage`, of
            which the load counts, or loads. A group without any load is averaged evenly. Default None, all alike.

    Returns:
        A built layer of the same name, an expert for each group, with a gate of its own.

    Raises:
        ValueError: If the layer is not built, quantized, or has another gate or other experts, if not every expert is
            in one group, there are fewer groups than its `k`, or `usage` does not fit.
        TypeError: If it is no SparseMoE.

    Example:

    >>> usage = tf_moe.analysis.measure_usage(model, dataset)
    >>> tf_moe.conversion.merge_experts(model.get_layer("moe"), groups=4, usage=usage["moe"]).num_experts
    4

    Reference: for the average by load Li et al. (2024), Merge, Then Compress: Demystify Efficient SMoE with Hints from
    Its Routing Policy (https://arxiv.org/abs/2310.01334); units are not permuted here as they are there.
    """
    _check_layer(layer)
    if layer.expert is not None or layer.experts.quantization_mode is not None:
        kind = "quantized ones" if layer.expert is None else f"expert={layer.expert!r}"
        raise ValueError(
            f"Only built-in experts that are not quantized can be averaged. Received: {layer.name!r} with {kind}."
        )
    loads = np.ones(layer.num_experts) if usage is None else _loads(usage, layer)
    if not isinstance(groups, (list, tuple, np.ndarray)):
        number = _number_of_experts("groups", groups, layer)
        groups = group_alike(layer.experts.get_weights(), loads if loads.any() else loads + 1, number)
    groups = _members("groups", groups, layer)
    if sum(len(group) for group in groups) < layer.num_experts:
        raise ValueError(
            f"groups must hold every one of the {layer.num_experts} experts. Received: groups={groups}. prune_experts "
            "leaves experts out."
        )
    return _smaller(layer, groups, loads)


class Shrunk(NamedTuple):
    """A model with fewer experts, and what that did to it.

    Attributes:
        model: The smaller model.
        before: What `evaluate` says of the model before, by the names of loss and metrics.
        after: What it says of the smaller one, on the same data.

    Example:

    >>> smaller = tf_moe.conversion.prune_experts(model.get_layer("moe"), keep=[0, 3, 5])
    >>> result = tf_moe.conversion.shrink_experts(model, lambda moe: smaller, dataset)
    >>> result.model.get_layer("moe").num_experts
    3
    """

    model: keras.Model
    before: dict[str, float]
    after: dict[str, float]


def shrink_experts(model: keras.Model, shrink: Callable[[SparseMoE], SparseMoE], data, **kwargs: Any) -> Shrunk:
    """A copy of a model with fewer experts in its mixtures, evaluated before and after.

    Args:
        model: A built and compiled Sequential or functional model; mixtures may be in models of these kinds inside of
            it. It is left as it is.
        shrink: What becomes of each SparseMoE layer; it may return the layer itself, of which the copy then has a copy.
        data: What `model.evaluate` takes: inputs, with `y=` for targets, or a dataset that can be gone through twice.
        **kwargs: Further arguments of `model.evaluate`, such as `y`, `batch_size` or `steps`. Default `verbose=0`.

    Returns:
        The smaller model, compiled as the model is, with an optimizer that starts anew; and loss and metrics of both.

    Raises:
        ValueError: If the model is of another kind, not compiled, or has no SparseMoE layer; and what `shrink` raises.
        TypeError: If `model` is no `keras.Model`.

    Example:

    >>> usage = tf_moe.analysis.measure_usage(model, dataset)
    >>> def prune(moe):
    ...     return tf_moe.conversion.prune_experts(moe, 4, usage[moe.name])
    >>> result = tf_moe.conversion.shrink_experts(model, prune, dataset)
    >>> result.model.get_layer("moe").num_experts, sorted(result.before) == sorted(result.after)
    (4, True)
    """
    layers = moe_layers(model)
    if not model.compiled:
        raise ValueError(
            f"The model must be compiled, with the loss that evaluates it. Received: {model.name!r}, which is not."
        )
    replaced = {layer: shrink(layer) for layer in layers}
    smaller = rebuild(model, {old: new for old, new in replaced.items() if new is not old})
    kwargs = {"verbose": 0, **kwargs, "return_dict": True}
    return Shrunk(smaller, model.evaluate(data, **kwargs), smaller.evaluate(data, **kwargs))


def _smaller(layer: SparseMoE, groups: list[list[int]], loads: np.ndarray) -> SparseMoE:
    """The layer with an expert for each group, the mean of its experts by load."""
    config = layer.get_config()
    config["num_experts"] = len(groups)
    gate = {**layer.gate.get_config(), "num_experts": len(groups)}
    config["gate"] = type(layer.gate).from_config(gate)
    if layer.expert is not None:  # which are pruned only
        experts = config["expert"]
        experts = experts["made"] if isinstance(experts, dict) else experts
        config["expert"] = [experts[e] for (e,) in groups]
    new = SparseMoE.from_config(config)
    new.build((None, layer.gate.kernel.shape[-2]))
    for old, variable in zip(layer.gate.weights, new.gate.weights, strict=True):
        variable.assign(_mean(keras.ops.convert_to_numpy(old).T, groups, loads).T)
    if layer.expert is not None:
        for (e,), expert in zip(groups, new.experts.layers, strict=True):
            expert.set_weights(layer.experts.layers[e].get_weights())
    else:
        for old, variable in zip(layer.experts.weights, new.experts.weights, strict=True):
            variable.assign(_mean(keras.ops.convert_to_numpy(old), groups, loads))
    if layer.shared_expert is not None:
        new.shared_expert.set_weights(layer.shared_expert.get_weights())
    return new


def _mean(stack: np.ndarray, groups: list[list[int]], loads: np.ndarray) -> np.ndarray:
    """`(E, ...)` -> the mean of each group, `(G, ...)`; one expert by itself to the last bit, also as an integer."""
    means = np.empty((len(groups), *stack.shape[1:]), stack.dtype)
    for mean, group in zip(means, groups, strict=True):
        share = loads[group] if loads[group].any() else np.ones(len(group))
        of_group = stack[group] if len(group) == 1 else np.average(stack[group], axis=0, weights=share)[None]
        mean[...] = of_group[0]
    return means


def _check_layer(layer):
    checks.instance("layer", layer, SparseMoE, "Pass the layer itself, or a model to shrink_experts.")
    if not layer.built:
        raise ValueError(f"The layer must be built, so that it has its weights. Received: {layer.name!r}, not built.")
    if type(layer.gate) is not gates.NoisyTopK:
        raise ValueError(
            "Experts can be left out or averaged where the gate is a NoisyTopK, on one level. Received: "
            f"{layer.name!r} with {layer.gate!r}."
        )


def _number_of_experts(name, value, layer):
    number = checks.integer(name, value, hint=", or a list")
    if not layer.k <= number <= layer.num_experts:
        raise ValueError(
            f"{name} must be at least k={layer.k}, the number of experts for each position, and at most "
            f"{layer.num_experts}, the layer's experts. Received: {name}={number}."
        )
    return number


def _members(name, groups, layer) -> list[list[int]]:
    """The experts of each group as sorted lists; checked."""
    members = [sorted(checks.integer(f"an expert in {name}", e, least=0) for e in group) for group in groups]
    experts = [e for group in members for e in group]
    if not all(members) or len(set(experts)) < len(experts) or max(experts, default=0) >= layer.num_experts:
        raise ValueError(
            f"{name} must hold experts, each at most once, from 0 to {layer.num_experts - 1}. Received: "
            f"{members if name == 'groups' else members[0]}."
        )
    if name == "groups":
        _number_of_experts("the number of groups", len(members), layer)
    else:
        _number_of_experts(f"the number of experts in {name}", len(experts), layer)
    return members


def _loads(usage, layer) -> np.ndarray:
    if isinstance(usage, dict):
        raise ValueError(
            f"usage must be that of the layer. Received: a dict of {list(usage)}. Pass usage[{layer.name!r}]."
        )
    loads = np.asarray(usage.load if isinstance(usage, Usage) else usage, np.float64)
    if loads.shape != (layer.num_experts,) or not np.all(np.isfinite(loads) & (loads >= 0)):
        raise ValueError(
            f"usage must be a Usage, or {layer.num_experts} loads, 0 or more, one for each expert. Received: "
            f"usage={usage!r}."
        )
    return loads
