"""Dtype policies of layers inside of a layer, where they differ from its own."""

import re
from collections.abc import Iterable

import keras


def policy_of(layer: keras.layers.Layer) -> keras.dtype_policies.DTypePolicy:
    """The policy that a layer computes by, also where it was given a map of policies by path."""
    policy = layer.dtype_policy
    if not isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        return policy
    return policy[layer.path] if layer.path else policy.default_policy


def policy_with_parts(
    layer: keras.layers.Layer, parts: Iterable[keras.layers.Layer]
) -> keras.dtype_policies.DTypePolicy:
    """The policy that makes a layer whose parts have the policies that these have now, such as quantized ones.

    Args:
        layer: A built layer.
        parts: Layers inside of it, which are made with its `dtype_policy`.

    Returns:
        The layer's own policy; or, where a part has another, a map from patterns of paths to policies.
    """
    own = policy_of(layer)
    others = {}
    for part in parts:
        if policy_of(part) != own:
            others[path_pattern(layer, part)] = policy_of(part)
    return keras.dtype_policies.DTypePolicyMap(own.name, others) if others else own


def path_pattern(layer: keras.layers.Layer, part: keras.layers.Layer) -> str:
    """The key of a map of policies for a part of a built layer, wherever the layer is: a copy may be elsewhere."""
    inside = part.path.removeprefix(f"{layer.path}/")
    return f"(.*/)?{re.escape(f'{layer.name}/{inside}')}"
