"""Kernels stacked over experts as 8-bit integers, each output column of each expert with a scale of its own."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_moe.experts.policies import policy_of
from tf_moe.mesh.shards import shards_of
from tf_moe.ops.arrangements import Ragged, Stacks
from tf_moe.ops.one_by_one import apply_one_by_one


class Quantized(NamedTuple):
    """Kernels of some experts: `kernel[e, :, o]` stands for `kernel[e, :, o] / scale[e, o]`.

    Attributes:
        kernel: Int8 `(E, D, O)`.
        scale: Float32 `(E, O)`.
    """

    kernel: tf.Tensor
    scale: tf.Tensor


def matmul_quantized(x: tf.Tensor, kernel: Quantized) -> tf.Tensor:
    """Each expert's rows times its kernel, `(E, n, D)`, `(E, D, O)` -> `(E, n, O)`, in the rows' dtype.

    Integers are cast as they are, and the product is scaled: it has fewer numbers than the kernel, where rows are fewer
    than D.
    """
    product = tf.matmul(x, tf.cast(kernel.kernel, x.dtype))
    return product / tf.cast(tf.expand_dims(kernel.scale, 1), x.dtype)


def quantize_stack(kernel: tf.Tensor, quantizer: Callable[..., tuple] | None = None) -> Quantized:
    """A stack of kernels in eight bits, one expert at a time.

    It is symmetric, and off by half a step at most, which is 1/254 of the largest weight of the column.

    Args:
        kernel: Floating point `(E, D, O)`.
        quantizer: One of `keras.quantizers` for a kernel `(D, O)`, with a scale for each output column. Default
            `AbsMaxQuantizer(axis=0)`.

    Returns:
        NumPy arrays; the scale is what weights were multiplied with, as Keras has it.

    Raises:
        ValueError: If the quantizer makes other scales than one for each column.
    """
    quantizer = quantizer or keras.quantizers.AbsMaxQuantizer(axis=0)
    num_experts, _, width = kernel.shape
    quantized = Quantized(np.empty(kernel.shape, np.int8), np.empty([num_experts, width], np.float32))
    for e in range(num_experts):
        values, scales = quantizer(kernel[e], to_numpy=True)
        if tuple(scales.shape) != (1, width):
            raise ValueError(
                "weight_quantizer must make one scale for each output column, as AbsMaxQuantizer(axis=0) does. "
                f"Received: scales of shape {tuple(scales.shape)} for a kernel {tuple(kernel.shape[1:])}."
            )
        quantized.kernel[e], quantized.scale[e] = values, keras.ops.cast(scales[0], "float32")
    return quantized


class QuantizableBank(keras.layers.Layer):
    """Base of a bank with stacked kernels that `quantize("int8")` makes 8-bit integers, as Keras does for its layers.

    A subclass has its kernels as attributes, and says which they are by `kernel_shapes`, and what it computes by
    `compute`. It adds quantized kernels in `build` where it has a `quantization_mode`.
    """

    def takes_block(self, training: bool = False) -> bool:
        """Whether rows come in a block, see `tf_moe.dispatch.dispatch_sorted`: it computes all experts at once."""
        return self.quantization_mode is None

    def kernel_shapes(self, width: int) -> dict[str, tuple[int, int, int]]:
        """The shapes of the kernels by name, given the width D of rows."""
        raise NotImplementedError(f"{type(self).__name__} must implement kernel_shapes(width).")

    def bias_names(self) -> list[str]:
        """The names of the biases, which stay as they are."""
        return []

    def compute(self, x: tf.Tensor, arrangement: Stacks | Ragged, **weights: tf.Tensor | Quantized) -> tf.Tensor:
        """Rows that stand as `arrangement` says, each with its expert's slice of the weights; of the same shape."""
        raise NotImplementedError(f"{type(self).__name__} must implement compute(x, arrangement, **weights).")

    def add_quantized_kernels(self, width: int) -> None:
        """Add zeros in place of kernels, and scales of the name `<kernel>_scale`."""
        self._check_mode(self.quantization_mode or "int8")
        fixed = {"trainable": False, "autocast": False}
        for name, (num_experts, size, columns) in self.kernel_shapes(width).items():
            kernel = self.add_weight((num_experts, size, columns), "zeros", "int8", name=name, **fixed)
            scale = self.add_weight((num_experts, columns), "ones", "float32", name=f"{name}_scale", **fixed)
            if shards_of(kernel):
                raise ValueError(
                    f"Quantized experts cannot be split over a mesh. Received: {self.name!r} under "
                    "ExpertParallelStrategy. Make or load the model outside of the strategy's scope."
                )
            setattr(self, name, kernel)
            setattr(self, f"{name}_scale", scale)
        self._is_quantized = True

    def quantize(self, mode=None, type_check=True, config=None):
        """Make the kernels 8-bit integers in place, for inference only; `model.quantize` calls it.

        Args:
            mode: "int8". Others raise NotImplementedError, which `model.quantize` turns into a warning.
            type_check: Ignored.
            config: A `keras.quantizers.Int8QuantizationConfig`. Of it the weight_quantizer counts: rows are never
                quantized.

        Raises:
            ValueError: If the layer is not built, quantized already, or split over a mesh.
        """
        self._check_mode(mode)
        self.check_whole()
        width = self.get_build_config()["input_shape"][-1]
        quantizer = config and config.weight_quantizer
        stacks = {name: tf.convert_to_tensor(getattr(self, name)) for name in self.kernel_shapes(width)}
        quantized = {name: quantize_stack(stack, quantizer) for name, stack in stacks.items()}
        for name in stacks:
            delattr(self, name)
        self.add_quantized_kernels(width)
        self.assign_quantized(quantized)
        self.dtype_policy = keras.dtype_policies.QuantizedDTypePolicy(mode, policy_of(self).name)

    def check_whole(self) -> None:
        """Raise ValueError for kernels that cannot be quantized where they are."""
        if shards_of(self.weights[0]):
            raise ValueError(
                f"Experts that are split over a mesh cannot be quantized. Received: {self.name!r} with kernels on "
                "several devices. Save the model, and quantize what is loaded on one device."
            )

    def assign_quantized(self, kernels: dict[str, Quantized]) -> None:
        """Give the kernels of a quantized bank their values."""
        for name, quantized in kernels.items():
            getattr(self, name).assign(quantized.kernel)
            getattr(self, f"{name}_scale").assign(quantized.scale)

    def _check_mode(self, mode):
        if mode != "int8":
            raise self._not_implemented_error(self.quantize, f"Only mode='int8' is. Received: mode={mode!r}.")

    def _int8_call(self, rows, counts, capacity=None, places=None, training=False):
        """What Keras calls instead of `call` once the layer is quantized."""
        if training:
            raise ValueError(
                f"Quantized experts are for inference, and cannot be trained. Received: training=True for {self.name!r}"
                ". Train the model, and then quantize it."
            )
        kernels = self.kernel_shapes(rows.shape[-1])
        names = [*kernels, *(f"{name}_scale" for name in kernels), *self.bias_names()]

        def function(x, *slices):
            weights = dict(zip(names, slices, strict=True))
            weights.update({name: Quantized(weights[name], weights.pop(f"{name}_scale")) for name in kernels})
            return self.compute(x, Stacks(matmul_quantized), **weights)

        return apply_one_by_one(
            function, rows, counts, [tf.convert_to_tensor(getattr(self, name)) for name in names], capacity
        )
