"""Sparse upcycling: a trained dense feed-forward becomes a mixture whose experts are copies of it."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_moe import checks, gates
from tf_moe.conversion.rebuild import layers_of, rebuild
from tf_moe.layers import SparseMoE

Pair = tuple[keras.layers.Dense | str, keras.layers.Dense | str]


def upcycle(
    hidden: keras.layers.Dense,
    output: keras.layers.Dense,
    num_experts: int | tuple[int, int],
    k: int | tuple[int, int],
    gate: "str | gates.Gate" = "noisy_top_k",
    noise: float = 0.0,
    seed: int | None = None,
    **kwargs: Any,
) -> SparseMoE:
    """A SparseMoE layer that computes what two trained dense layers compute, each expert being a copy of them.

    The gate values of a token sum to one, so that the mixture gives what the dense layers give, up to rounding, and at
    masked positions zeros. From there on it is trained: the experts see different tokens, and part.

    Args:
        hidden: A built `keras.layers.Dense`, D -> H, with any activation.
        output: A built `keras.layers.Dense`, H -> D, that is called on what `hidden` returns. Its activation is applied
            after the sum over experts.
        num_experts: Number of experts, or a pair for two levels.
        k: Number of experts for each position, or a pair; not 1 where there are more experts to choose from, since the
            weight of a single expert is its probability, under one.
        gate: "noisy_top_k", or a `tf_moe.gates.NoisyTopK` or `Hierarchical`. The one made from the name starts from
            "glorot_uniform" weights, not from the layer's zeros: as long as the experts are equal the task tells the
            gate nothing, and with zeros every token would go to experts that the noise draws anew in each step. With
            random weights each expert has tokens of its own from the first step, and they part sooner.
        noise: Standard deviation of normal noise on the kernels of every expert, as a share of that of the weights of
            the kernel. Default 0, exact copies.
        seed: Integer seed of the noise on the kernels, of the gate's weights and its noise in training, or None.
        **kwargs: Further arguments of `SparseMoE`, such as `importance_weight`, `expert_dropout` or
            `shared_expert_hidden` (that expert begins as nothing, its output kernel being zero); also
            `kernel_regularizer` and `kernel_constraint`, which are by default those of the dense layers. A
            `capacity_factor` drops tokens, of which the first output then lacks a part.

    Returns:
        A built layer; with biases if one of the dense layers has them, and in their dtype policy. It is trainable, also
        where they are frozen, for its gate has yet to learn; pass `trainable=False` for another.

    Raises:
        ValueError: If the dense layers cannot be converted: widths that do not fit, other kinds of layers, not built,
            quantized, with LoRA, or with what experts cannot have, such as a regularizer of biases; if a gate's values
            do not sum to one; or for any other argument out of range.

    Example:

    >>> hidden, output = keras.layers.Dense(32, "relu"), keras.layers.Dense(16)
    >>> dense = keras.Sequential([keras.Input((16,)), hidden, output])
    >>> moe = tf_moe.conversion.upcycle(hidden, output, num_experts=8, k=2)
    >>> x = tf.random.normal([5, 16])
    >>> np.allclose(moe(x), dense(x), atol=1e-5)
    True

    Reference: Komatsuzaki et al. (2022), Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints
    (https://arxiv.org/abs/2212.05055).
    """
    seed = checks.seed(seed)
    noise = checks.at_least_zero("noise", noise)
    _check_dense("hidden", hidden)
    _check_dense("output", output)
    width, units = hidden.kernel.shape
    if output.kernel.shape != (units, width):
        raise ValueError(
            "hidden must map a width D to H, and output H to D. Received: "
            f"{hidden.name!r} with a kernel {tuple(hidden.kernel.shape)}, "
            f"{output.name!r} with one {tuple(output.kernel.shape)}."
        )
    if hidden.dtype_policy != output.dtype_policy:
        raise ValueError(
            "hidden and output must have one dtype policy. Received: "
            f"{hidden.dtype_policy.name} and {output.dtype_policy.name}."
        )
    gate = _gate(gate, num_experts, k, seed)
    for name in ("kernel_regularizer", "kernel_constraint"):
        if name not in kwargs:
            kwargs[name] = _common(name, hidden, output)
    layer = SparseMoE(
        num_experts,
        units,
        k=k,
        gate=gate,
        activation=hidden.activation,
        output_activation=output.activation,
        use_bias=hidden.use_bias or output.use_bias,
        seed=seed,
        **{"name": f"{hidden.name}_moe", "dtype": hidden.dtype_policy, **kwargs},
    )
    layer.build((None, width))
    if layer.shared_expert is not None:  # which begins as nothing, or the sum would be another
        kernel = [part for part in layer.shared_expert.layers if part.weights][-1].kernel
        kernel.assign(tf.zeros_like(kernel))
    draw = np.random.default_rng(np.random.randint(2**31) if seed is None else seed % 2**64)
    for dense, kernel, bias in (
        (hidden, layer.experts.hidden_kernel, layer.experts.hidden_bias),
        (output, layer.experts.output_kernel, layer.experts.output_bias),
    ):
        _copy_to_all(dense.kernel, kernel, noise, draw)
        if dense.use_bias:
            _copy_to_all(dense.bias, bias, 0.0, draw)
    return layer


def upcycle_model(
    model: keras.Model,
    pairs: Iterable[Pair],
    num_experts: int | tuple[int, int],
    k: int | tuple[int, int],
    **kwargs: Any,
) -> keras.Model:
    """A copy of a dense model in which pairs of dense layers have become mixtures: it predicts what the model predicts.

    Masked positions excepted, where a mixture gives zeros.

    Args:
        model: A built Sequential or functional model; the pairs may be in models of these kinds inside of it. It is
            left as it is.
        pairs: Pairs (hidden, output) of `Dense` layers, or of their names, the second called on what the first returns
            and nothing else.
        num_experts: Number of experts of each mixture.
        k: Number of experts for each position.
        **kwargs: Further arguments of `upcycle`. With a `seed`, each mixture gets the next one.

    Returns:
        A model of the same name with a `SparseMoE` of the name `<hidden>_moe` for each pair, and the weights of all
        other layers; compiled if the model is, with an optimizer that starts anew.

    Raises:
        ValueError: If a pair cannot be converted, see `upcycle`; if there is none, a name is not that of just one
            layer, something comes between the layers of a pair, or the model is of another kind.
        TypeError: If `model` is no `keras.Model`.

    Example:

    >>> layers = [keras.layers.Dense(32, "relu", name="hidden"), keras.layers.Dense(8, name="output")]
    >>> dense = keras.Sequential([keras.Input((None,), dtype="int32"), keras.layers.Embedding(50, 8), *layers])
    >>> sparse = tf_moe.conversion.upcycle_model(dense, [("hidden", "output")], num_experts=8, k=2)
    >>> np.allclose(sparse(tokens), dense(tokens), atol=1e-5)
    True

    Reference: Komatsuzaki et al. (2022), https://arxiv.org/abs/2212.05055; they convert half of the layers.
    """
    checks.built_model(model)
    found = [tuple(_find(model, layer) for layer in pair) for pair in pairs]
    if {len(pair) for pair in found} != {2} or len({id(layer) for pair in found for layer in pair}) < 2 * len(found):
        raise ValueError(
            "pairs must be one pair (hidden, output) of layers or more, each layer in one pair alone. Received: "
            f"{[tuple(layer.name for layer in pair) for pair in found]}."
        )
    if isinstance(kwargs.get("gate"), gates.Gate) and len(found) > 1:
        raise ValueError(
            f"A gate cannot be that of several mixtures. Received: gate={kwargs['gate']!r} and {len(found)} pairs. "
            "Pass a name, or convert the pairs one after the other."
        )
    seed = checks.seed(kwargs.pop("seed", None))
    fused = {}
    for n, (hidden, output) in enumerate(found):
        # Of each mixture another, or they would have the same noise.
        of_this = None if seed is None else seed + n
        fused[hidden, output] = upcycle(hidden, output, num_experts, k, seed=of_this, **kwargs)
    return rebuild(model, fused=fused)


def _check_dense(name, layer):
    if type(layer) is not keras.layers.Dense:
        raise ValueError(f"{name} must be a keras.layers.Dense. Received: {name}={layer!r}.")
    if not layer.built:
        raise ValueError(f"{name} must be built, so that it has its weights. Received: {layer.name!r}, which is not.")
    if layer.quantization_mode is not None or layer.lora_enabled:
        what = "LoRA" if layer.lora_enabled else f"quantization to {layer.quantization_mode}"
        raise ValueError(f"{name} must be a plain layer. Received: {layer.name!r} with {what}.")
    for attribute in ("bias_regularizer", "bias_constraint", "activity_regularizer"):
        if getattr(layer, attribute) is not None:
            raise ValueError(
                f"{name} must have no {attribute}, since experts have none. Received: {layer.name!r} with "
                f"{attribute}={getattr(layer, attribute)!r}. Convert a copy without it."
            )


def _common(name, hidden, output):
    """A regularizer or constraint that both layers have, or neither."""
    first, second = getattr(hidden, name), getattr(output, name)
    if keras.saving.serialize_keras_object(first) != keras.saving.serialize_keras_object(second):
        raise ValueError(
            f"hidden and output must have the same {name}. Received: {first!r} and {second!r}. Pass {name}= for the "
            "experts."
        )
    return first


def _gate(gate, num_experts, k, seed):
    if isinstance(gate, str):
        if gate != "noisy_top_k":
            raise ValueError(
                "gate must be 'noisy_top_k', or a gate whose values always sum to one: a NoisyTopK or Hierarchical. "
                f"Received: gate={gate!r}."
            )
        gate = gates.get(gate, num_experts, k, seed, kernel_initializer=keras.initializers.GlorotUniform(seed))
    gate = gates.get(gate, num_experts, k)
    if not isinstance(gate, (gates.NoisyTopK, gates.Hierarchical)):
        raise ValueError(
            f"gate must be one whose values always sum to one: a NoisyTopK or Hierarchical. Received: gate={gate!r}."
        )
    levels = list(zip(np.ravel(gate.num_experts), np.ravel(gate.k), strict=True))
    if gate.normalize != "chosen" and any(chosen < experts for experts, chosen in levels):
        raise ValueError(
            "gate must have normalize='chosen', so that the values of the chosen experts sum to one. Received: "
            f"gate={gate!r} with normalize={gate.normalize!r}."
        )
    if any(chosen == 1 and experts > 1 for experts, chosen in levels):
        raise ValueError(
            "k must be 2 or more, on every level: the weight of a single expert is its probability, and the mixture "
            f"would give just that share of what the dense layers give. Received: k={k}."
        )
    return gate


def _copy_to_all(weight, stack, noise, draw):
    """Assign a dense layer's weight to every slice of a stacked one, each with noise of its own."""
    value = keras.ops.convert_to_numpy(weight)
    scale = noise * float(np.std(value.astype(np.float64)))
    values = np.repeat(value[None], stack.shape[0], axis=0)
    if scale:
        for each in values:
            each += scale * draw.standard_normal(value.shape, np.float32).astype(value.dtype)
    stack.assign(tf.convert_to_tensor(values))


def _find(model, layer):
    if isinstance(layer, keras.layers.Layer):
        return layer
    found = list(dict.fromkeys(each for each in layers_of(model) if each.name == layer))
    if len(found) != 1:
        raise ValueError(
            f"A layer of a pair must be a layer, or the name of just one layer of the model. Received: {layer!r}, "
            f"which is the name of {len(found)} of {[each.name for each in layers_of(model)]}."
        )
    return found[0]
