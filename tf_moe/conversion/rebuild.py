"""A copy of a model with other layers in some places."""

import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from tf_moe import checks
from tf_moe.layers import SparseMoE

Layer = keras.layers.Layer


def rebuild(
    model: keras.Model,
    replaced: Mapping[Layer, Layer] | None = None,
    fused: Mapping[tuple[Layer, Layer], Layer] | None = None,
) -> keras.Model:
    """A copy of a model with the same weights, but with other layers in some places.

    Args:
        model: A built Sequential or functional model; models of these kinds inside of it are copied too. It is left as
            it is.
        replaced: For each layer that is replaced, the one that takes its place, with the weights that it has.
        fused: The same for pairs of layers, the second of which is called on what the first returns, and nothing else
            is.

    Returns:
        A model of the same name, compiled if the model is, with an optimizer that starts anew.

    Raises:
        ValueError: If the model or one that holds a layer to be replaced is of another kind, a layer to be replaced is
            not there, or the layers of a pair do not follow one another.
        TypeError: If `model` is no `keras.Model`.
    """
    checks.built_model(model)
    replaced, fused = replaced or {}, fused or {}
    if not _is_graph(model):
        raise ValueError(
            "Only Sequential and functional models can be rebuilt with other layers. Received: "
            f"{model.name!r} of type {type(model).__name__}. Convert its layers, and put them where they belong."
        )
    there = set(layers_of(model))
    for layer in [*replaced, *(each for pair in fused for each in pair)]:
        if layer not in there:
            raise ValueError(
                f"A layer to be replaced must be one of the model's layers, and not inside of another layer than a "
                f"Sequential or functional model. Received: {layer.name!r}, and the model {model.name!r}."
            )
    rebuilding = _Rebuilding(replaced, fused)
    new = rebuilding.model(model)
    for layer, clone in rebuilding.copied:
        _copy_state(layer, clone)
    return new


def _copy_state(layer: Layer, clone: Layer) -> None:
    """Weights, and what layers of preprocessing have beside them: tables of words, and constants made of weights."""
    clone.set_weights(layer.get_weights())
    for old, new in zip(layer._flatten_layers(), clone._flatten_layers(), strict=True):
        if hasattr(old, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                old.save_assets(folder)
                new.load_assets(folder)
        if hasattr(new, "finalize_state"):
            new.finalize_state()


def _is_graph(layer: Layer) -> bool:
    """Whether it is a Sequential or functional model, which says how its layers follow one another."""
    return isinstance(layer, keras.Sequential) or (isinstance(layer, keras.Model) and hasattr(layer, "operations"))


def layers_of(model: keras.Model) -> Iterator[Layer]:
    """The layers of a Sequential or functional model, and of those inside of it."""
    for layer in model.layers:
        if _is_graph(layer):
            yield from layers_of(layer)
        else:
            yield layer


def moe_layers(model: keras.Model) -> list[SparseMoE]:
    """The SparseMoE layers of a Sequential or functional model; raises ValueError where there are none."""
    checks.built_model(model)
    found = [layer for layer in layers_of(model) if isinstance(layer, SparseMoE)]
    if not found:
        raise ValueError(
            "The model must be Sequential or functional, with a SparseMoE layer that is not inside of a layer of "
            f"another kind. Received: {model.name!r} of type {type(model).__name__}, with the layers "
            f"{[layer.name for layer in layers_of(model)]}."
        )
    return list(dict.fromkeys(found))  # one may be in two models


class Copies:
    """Copies of what mixtures of a model may share: those that share a gate or an expert share its copy."""

    def __init__(self):
        self._copies = {}  # by the id of the original

    def config(self, layer: SparseMoE) -> dict[str, Any]:
        """The layer's config, with copies in the place of configs."""
        config = layer.get_config()
        if not isinstance(config["gate"], str):
            config["gate"] = self._copy(layer.gate, config["gate"])
        if isinstance(config["expert"], list):
            config["expert"] = list(map(self._copy, layer.experts.layers, config["expert"]))
        return config

    def _copy(self, part, config):
        if id(part) not in self._copies:
            self._copies[id(part)] = keras.saving.deserialize_keras_object(config)
        return self._copies[id(part)]


class _Rebuilding:
    """One copy in the making."""

    def __init__(self, replaced, fused):
        self.replaced = replaced
        self.second_of = dict(fused.keys())
        self.first_of = {second: first for first, second in fused}
        self.fused = {second: new for (_, second), new in fused.items()}
        self.copied = []  # layers, and their copies, which are to get their weights
        self.clones = {}  # by layer: one may be in two models
        self.copies = Copies()

    def model(self, model):
        if model not in self.clones:
            make = self._sequential if isinstance(model, keras.Sequential) else self._functional
            self.clones[model] = make(model)
            self.clones[model].supports_masking = model.supports_masking  # which may have been set by hand
        return self.clones[model]

    def layer(self, layer):
        if not isinstance(layer, Layer):
            return layer  # an operation, without a state
        if layer in self.replaced:
            return self.replaced[layer]
        if _is_graph(layer):
            return self.model(layer)
        if layer not in self.clones:
            config = self.copies.config(layer) if isinstance(layer, SparseMoE) else layer.get_config()
            self.clones[layer] = type(layer).from_config(config)
            self.copied.append((layer, self.clones[layer]))
        return self.clones[layer]

    def _sequential(self, model):
        (inputs,) = model.inputs
        new = [keras.Input(batch_shape=inputs.shape, dtype=inputs.dtype, name=inputs.name)]
        after = None  # the layer before, if it is the first of a pair
        for layer in model.layers:
            first = self.first_of.get(layer)
            if after is not None and first is not after:
                raise self._used_elsewhere(after, layer)
            if first is not None and after is None:
                raise _not_after(layer, first)
            after = layer if layer in self.second_of else None
            if after is None:
                new.append(self.layer(layer) if first is None else self.fused[layer])
        if after is not None:
            raise self._used_elsewhere(after, model)
        sequential = _empty_as(model)
        for layer in new:
            sequential.add(layer)
        if model.compiled:
            sequential.compile_from_config(model.get_compile_config())
        return sequential

    def _functional(self, model):
        stand_ins = {}  # by the id of a tensor that stands for what a first layer returned: layer, tensor, its input

        def clone(layer):
            # The layers of pairs come through as they are, for `call` to know them.
            return layer if layer in self.second_of or layer in self.first_of else self.layer(layer)

        def call(layer, *args, **kwargs):
            if layer in self.first_of:
                first, _, inputs = stand_ins.get(id(args[0]), (None, None, None))
                if first is not self.first_of[layer]:
                    raise _not_after(layer, self.first_of[layer])
                return self.fused[layer](inputs, *args[1:], **kwargs)
            for value in keras.tree.flatten((args, kwargs)):
                if id(value) in stand_ins:
                    raise self._used_elsewhere(stand_ins[id(value)][0], layer)
            if layer in self.second_of:
                stand_in = keras.layers.Identity()(args[0])
                stand_ins[id(stand_in)] = (layer, stand_in, args[0])
                return stand_in
            return layer(*args, **kwargs)

        # Keras would give new names to inputs.
        names = {id(each.output): each.name for each in model.layers if isinstance(each, keras.layers.InputLayer)}
        inputs = keras.tree.map_structure(
            lambda each: keras.Input(batch_shape=each.shape, dtype=each.dtype, name=names[id(each)]), model.input
        )
        new = keras.models.clone_model(model, inputs, clone_function=clone, call_function=call)
        for output in new.outputs:
            if id(output) in stand_ins:
                raise self._used_elsewhere(stand_ins[id(output)][0], model)
        return new

    def _used_elsewhere(self, first, user):
        return ValueError(
            f"What {first.name!r} returns must go to {self.second_of[first].name!r} and nowhere else. "
            f"Received: it goes to {user.name!r} of type {type(user).__name__}."
        )


def _empty_as(model):
    """A Sequential model of the same class without layers, as Keras makes one that it loads."""
    try:
        new = type(model)(trainable=model.trainable, name=model.name)
    except TypeError:
        new = None
    if new is None or new.layers:
        raise ValueError(
            "A subclass of Sequential must have Sequential's arguments, and no layers of its own, to be rebuilt. "
            f"Received: {model.name!r} of type {type(model).__name__}."
        )
    return new


def _not_after(second, first):
    return ValueError(
        f"{second.name!r} must be called on what {first.name!r} returns. Received: it is called on something else."
    )
