"""Experts in fewer bits, for inference."""

from typing import TypeVar

import keras
import tensorflow as tf

from tf_moe import checks
from tf_moe.conversion.rebuild import Copies, moe_layers, rebuild
from tf_moe.experts.policies import path_pattern, policy_of
from tf_moe.experts.quantized import quantize_stack
from tf_moe.layers import SparseMoE

MODES = ("int8", "bfloat16")
ModelOrLayer = TypeVar("ModelOrLayer", keras.Model, SparseMoE)


def quantize_experts(model: ModelOrLayer, mode: str) -> ModelOrLayer:
    """A copy of a model or a layer whose experts are held in fewer bits, for serving; all else stays as it is.

    "int8": kernels are 8-bit integers, a quarter of float32's memory, with a float32 scale for each expert and output
    column, so that a weight is off by 1/254 of the column's largest at most. The experts that have rows are made floats
    one after the other, never all at once; what that takes comes on top of the arithmetic, which is as before, so that
    inference is slower. It is an error to train it. "bfloat16": weights, rows and hidden layer are in bfloat16, half of
    the memory, computed as ever. It can be trained, but small updates are lost in rounding.

    Gate, sum over experts, a shared expert, and all other layers are left alone. `model.quantize("int8")` of Keras does
    it in place, to dense layers too, and those it makes quantize their inputs as well; `model.quantize("int8",
    filters="experts")` does just this, in models of any kind.

    Args:
        model: A built Sequential or functional model, in which mixtures may be in models of these kinds; or a built
            SparseMoE layer. It is left as it is.
        mode: "int8" or "bfloat16".

    Returns:
        A model or a layer of the same name, which is saved, loaded and exported as any; a model is compiled if it was.

    Raises:
        ValueError: If the mode is another, the model is of another kind or has no SparseMoE layer, a layer is not
            built, is quantized, or its experts are Keras layers; for "int8", also if the layer computes in float16.
        TypeError: If it is neither a model nor a SparseMoE layer.

    Example:

    >>> small = tf_moe.conversion.quantize_experts(model, "int8")
    >>> small.save("served.keras")

    Reference: the scales of columns are those of the vector-wise quantization of Dettmers et al. (2022), LLM.int8()
    (https://arxiv.org/abs/2208.07339); here rows are not quantized.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}. Received: mode={mode!r}.")
    if isinstance(model, SparseMoE):
        return _quantize_layer(model, mode, Copies())
    checks.instance("model", model, keras.Model, "Pass a model or a SparseMoE layer.")
    copies = Copies()
    return rebuild(model, {layer: _quantize_layer(layer, mode, copies) for layer in moe_layers(model)})


def _quantize_layer(layer: SparseMoE, mode: str, copies: Copies) -> SparseMoE:
    experts = layer.experts
    if layer.expert is not None or not layer.built or experts.quantization_mode is not None:
        raise ValueError(
            f"Only layers that are built, with the built-in experts, and not quantized can be quantized. Received: "
            f"{layer.name!r} with built={layer.built}, expert={layer.expert!r}, experts of the dtype policy "
            f"{policy_of(experts).name!r}. Experts that are Keras layers have methods quantize of their own."
        )
    experts.check_whole()
    config = copies.config(layer)
    policy = keras.dtype_policies.get(config["dtype"])
    if not isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        policy = keras.dtype_policies.DTypePolicyMap(policy.name)
    here = path_pattern(layer, experts)
    if here in policy:
        del policy[here]  # a key may be set once only
    policy[here] = mode if mode == "bfloat16" else f"int8_from_{policy_of(experts).name}"
    new = SparseMoE.from_config({**config, "dtype": policy})
    width = experts.hidden_kernel.shape[1]
    new.build((None, width))
    new.gate.set_weights(layer.gate.get_weights())
    if layer.shared_expert is not None:
        new.shared_expert.set_weights(layer.shared_expert.get_weights())
    for name in experts.bias_names():
        getattr(new.experts, name).assign(getattr(experts, name))
    for name in experts.kernel_shapes(width):
        kernel = tf.convert_to_tensor(getattr(experts, name))
        if mode == "int8":
            new.experts.assign_quantized({name: quantize_stack(kernel)})
        else:
            getattr(new.experts, name).assign(kernel)
    return new
