"""What is inside of a `SparseMoE`: experts made from its arguments, and gates and experts in its config."""

import inspect
from collections.abc import Callable
from typing import Any

import keras

from tf_moe.experts import FeedForward, LayerBank

Layer = keras.layers.Layer


def make_experts(
    num_experts: int,
    expert_hidden: int | None,
    expert: Callable[[], Layer] | list[Layer] | None,
    *,
    dropout: float,
    recompute: bool,
    dtype: keras.dtype_policies.DTypePolicy,
    **options,
) -> FeedForward | LayerBank:
    """The bank for the arguments `expert_hidden` and `expert` of a `SparseMoE`.

    Args:
        num_experts: Number of experts over both levels.
        expert_hidden: Width of the built-in experts' hidden layer.
        expert: None, a function that makes an expert, or a list of them.
        dropout: Share of the built-in experts' hidden units dropped in training.
        recompute: Whether activations are computed again in the backward pass.
        dtype: The layer's policy.
        **options: Further arguments of `FeedForward`, which layers of one's own have no use for.
    """
    if expert is None:
        return FeedForward(num_experts, expert_hidden, dropout=dropout, recompute=recompute, dtype=dtype, **options)
    if dropout:
        raise ValueError(
            f"expert_dropout is for the built-in experts. Received: expert_dropout={dropout} and expert={expert!r}. "
            "Put keras.layers.Dropout into the expert."
        )
    layers = expert
    if _makes_layers(layers):
        layers = [layers() for _ in range(num_experts)]
    elif not isinstance(layers, (list, tuple)) or len(layers) != num_experts:
        raise ValueError(
            "expert must be a function without arguments that returns a new layer, or a list of "
            f"{num_experts} layers, one for each expert. Received: expert={layers!r}."
        )
    return LayerBank(layers, recompute, dtype=dtype)


def _makes_layers(expert: Any) -> bool:
    """Whether it can be called without arguments. One layer can be called too, and a class that needs arguments."""
    if not callable(expert) or isinstance(expert, Layer):
        return False
    try:
        inspect.signature(expert).bind()
    except TypeError:
        return False
    return True


def to_config(part: Layer, owner: Layer) -> dict[str, Any]:
    """The config of a gate or an expert, which is built by its owner again if it was so at first.

    Otherwise the paths of its weights would be others once it is loaded, and optimizers may go by them.
    """
    # Twice: while a model is saved, Keras marks what it meets again, so that it is loaded as one object. It would
    # mark a part of two layers in the second one only (it copies the configs of what is inside of layers), and the
    # loaded model would have two parts, and weights for one.
    keras.saving.serialize_keras_object(part)
    config = keras.saving.serialize_keras_object(part)
    if part.path and part.path.startswith(f"{owner.path}/"):
        config["build_config"] = None
    return config


def experts_to_config(expert: Callable[[], Layer] | list[Layer], bank: LayerBank) -> list[dict] | dict[str, list[dict]]:
    """The argument `expert` in a config: a list; or, under "made", what a function made."""
    configs = [to_config(layer, bank) for layer in bank.layers]
    return configs if isinstance(expert, (list, tuple)) else {"made": configs}


def experts_from_config(config: Any) -> Any:
    """The argument `expert` again; a list may hold layers already."""
    if isinstance(config, dict):
        if "made" not in config:
            raise ValueError(f"expert in a config must be a list, or under 'made' a list. Received: {config}.")
        # By a function again, which hands them out: Keras looks for weights in every list that a layer has, and a list
        # here would come before the bank, in which they were when the file was written. They are built there, not
        # before.
        unbuilt = ({**made, "build_config": None} for made in config["made"])
        return iter([keras.saving.deserialize_keras_object(made) for made in unbuilt]).__next__
    if isinstance(config, (list, tuple)):
        return [e if isinstance(e, Layer) else keras.saving.deserialize_keras_object(e) for e in config]
    return config
