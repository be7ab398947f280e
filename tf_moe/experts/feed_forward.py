"""The bank of feed-forward experts, their weights stacked."""

from collections.abc import Callable

import keras
import tensorflow as tf

from tf_moe import checks
from tf_moe.experts.constraints import ConstrainEach
from tf_moe.experts.quantized import QuantizableBank
from tf_moe.initializers import Initializer, PerExpert
from tf_moe.mesh.device_groups import ShardedGroups
from tf_moe.mesh.move import Exchange
from tf_moe.mesh.new_variables import split_over_experts
from tf_moe.mesh.shards import EXPERT, shards_of
from tf_moe.ops.arrangements import Ragged, Stacks
from tf_moe.ops.grouped import apply_grouped
from tf_moe.ops.grouped_mesh import apply_grouped_mesh
from tf_moe.ops.noise import next_seed, uniform
from tf_moe.ops.recompute import recomputed
from tf_moe.ops.stacked_matmul import fastest_matmul, is_slow


@keras.saving.register_keras_serializable(package="tf_moe")
class FeedForward(QuantizableBank):
    """E experts with one hidden layer each: `activation(x hidden_kernel) output_kernel`.

    Weights: `hidden_kernel` `(E, D, H)` and `output_kernel` `(E, H, D)`; with biases, `hidden_bias` `(E, H)` and
    `output_bias` `(E, D)`, zeros at first. Stacked, they are one matrix product, one layout on a mesh, and one slot of
    the optimizer.

    `quantize("int8")`, which `model.quantize("int8")` calls, makes the kernels 8-bit integers, for inference: a quarter
    of the memory. They get the scales `hidden_kernel_scale` `(E, H)` and `output_kernel_scale` `(E, D)`, float32;
    biases stay as they are, and so do the rows. One expert's kernels at a time are floats, and only of experts that
    have rows.

    Args:
        num_experts: Number of experts E.
        hidden: Width H of the hidden layer. It is also the ratio of arithmetic to input and output, which has to exceed
            the device's ratio of arithmetic to bandwidth (section 3.2).
        activation: Activation of the hidden layer, elementwise along the last axis. Default "relu". Its derivative at 0
            must be finite: of rows, which may be empty places, some are zeros.
        use_bias: Whether both layers have biases. Default False.
        recompute: Whether hidden activations are computed again in the backward pass instead of kept. Default False.
        kernel_initializer: Initializer of each expert's kernels, as if they were not stacked. Default "glorot_uniform".
        kernel_regularizer: Regularizer of the stacked kernels. Default None.
        kernel_constraint: Constraint of each expert's kernels. Default None.
        dropout: Share of hidden units dropped in training. Default 0. Each expert draws once a step, for all of its
            rows: so the numbers do not depend on where rows stand, on which device, or how often they are computed.
        seed: Integer seed of what is dropped, or None.
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If `num_experts` or `hidden` is no positive integer, `use_bias` or `recompute` no boolean, `dropout`
            not in [0, 1), or `seed` neither an integer nor None. When called, if the activation has weights, or changes
            the width.

    Call arguments:
        rows: `(S, D)`, sorted by expert; or `(E * C, D)`, C rows for each; or, on a mesh, `(N, R, M, D)`, sorted by
            expert on each device.
        counts: Int32 `(E,)`, rows of each expert; on a mesh, `tf_moe.mesh.device_groups.ShardedGroups`.
        capacity: C, or None where rows are sorted without gaps. On a mesh, the rows of an expert that a device sends.
        places: Where there is no capacity, the places of each expert in a block, see `Plan`; None without a block.
        training: Whether hidden units are dropped. Default False.

    Example:

    >>> experts = tf_moe.experts.FeedForward(num_experts=3, hidden=16)
    >>> experts(tf.ones([5, 8]), tf.constant([2, 0, 3])).shape  # two rows of expert 0, three of expert 2
    TensorShape([5, 8])

    Reference: section 3.2 and appendix C.1 of Shazeer et al. (2017).
    """

    def __init__(
        self,
        num_experts: int,
        hidden: int,
        activation: str | Callable | None = "relu",
        use_bias: bool = False,
        recompute: bool = False,
        kernel_initializer: Initializer = "glorot_uniform",
        kernel_regularizer: str | keras.regularizers.Regularizer | None = None,
        kernel_constraint: str | keras.constraints.Constraint | None = None,
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs,
    ):
        kwargs.setdefault("name", "experts")
        super().__init__(**kwargs)
        self.num_experts = checks.integer("num_experts", num_experts)
        self.hidden = checks.integer("hidden", hidden)
        self.activation = keras.activations.get(activation)
        self.use_bias = checks.boolean("use_bias", use_bias)
        self.recompute = checks.boolean("recompute", recompute)
        self.dropout = checks.zero_to_below_one("dropout", dropout)
        self.seed = checks.seed(seed)
        self.seed_generator = keras.random.SeedGenerator(self.seed) if self.dropout else None
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)

    def build(self, input_shape):
        width = input_shape[-1]
        with split_over_experts(self.num_experts):
            if self.quantization_mode is None:
                for stream, (name, shape) in enumerate(self.kernel_shapes(width).items()):
                    setattr(self, name, self._add_kernel(name, shape, stream))
            else:
                self.add_quantized_kernels(width)
            self.hidden_bias = self.output_bias = None
            if self.use_bias:
                self.hidden_bias = self._add_bias("hidden_bias", self.hidden)
                self.output_bias = self._add_bias("output_bias", width)

    def kernel_shapes(self, width):
        return {
            "hidden_kernel": (self.num_experts, width, self.hidden),
            "output_kernel": (self.num_experts, self.hidden, width),
        }

    def bias_names(self):
        return ["hidden_bias", "output_bias"] if self.use_bias else []

    def _add_kernel(self, name, shape, stream):
        return self.add_weight(
            shape=shape,
            initializer=PerExpert(self.kernel_initializer, stream),
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint and ConstrainEach(self.kernel_constraint),
            name=name,
        )

    def _add_bias(self, name, width):
        bias = self.add_weight(shape=(self.num_experts, width), initializer=PerExpert("zeros"), name=name)
        bias.stacked_axes = 1  # for optimizers: vectors, not a matrix
        return bias

    def call(
        self,
        rows: tf.Tensor,
        counts: tf.Tensor | ShardedGroups,
        capacity: int | tf.Tensor | None = None,
        places: tf.Tensor | None = None,
        training: bool = False,
    ) -> tf.Tensor:
        # Read whole: a gather of a variable would make every later read copy it.
        names = [*self.kernel_shapes(rows.shape[-1]), *self.bias_names()]
        stacks = {name: tf.convert_to_tensor(getattr(self, name)) for name in names}
        if training and self.dropout:
            stacks["unit_scale"] = self._draw_unit_scale()
        weights = list(stacks.values())

        def function(arrangement):
            return lambda x, *slices: self.compute(x, arrangement, **dict(zip(stacks, slices, strict=True)))

        if isinstance(counts, ShardedGroups):
            move = Exchange(shards_of(self.hidden_kernel))
            return apply_grouped_mesh(function(Stacks()), rows, counts, weights, move, capacity, self.recompute)
        arrangement, shape = Stacks(fastest_matmul(training)), [self.num_experts, capacity]
        if capacity is None:
            if places is not None or self.takes_block(training):
                return apply_grouped(function(arrangement), rows, counts, weights, places, self.recompute)
            arrangement, shape = Ragged(counts), [1, -1]
        apply = recomputed(function(arrangement)) if self.recompute else function(arrangement)
        return tf.reshape(apply(tf.reshape(rows, [*shape, rows.shape[-1]]), *weights), tf.shape(rows))

    def takes_block(self, training: bool = False) -> bool:
        return super().takes_block(training) and not (training and is_slow(self.hidden_kernel.shape))

    def _draw_unit_scale(self) -> tf.Tensor:
        """What each hidden unit is multiplied with in this step, `(E, H)`: 0 where it is dropped.

        It goes with the weights, sliced as they are: a function called for some experts' rows alone, or once more in
        the backward pass, drops the same units.
        """
        shards = shards_of(self.hidden_kernel)
        # Folded, or with one seed for both these would be the random bits of the gate's noise.
        seed = tf.random.experimental.stateless_fold_in(next_seed(self.seed_generator), 1)
        numbers = uniform([self.num_experts, self.hidden], seed, shards)
        scale = tf.cast(numbers >= self.dropout, self.compute_dtype) / (1 - self.dropout)
        return shards.relayout(scale, {0: EXPERT}) if shards else scale

    def compute(
        self, x, arrangement, hidden_kernel, output_kernel, hidden_bias=None, output_bias=None, unit_scale=None
    ):
        hidden = arrangement.matmul(x, hidden_kernel)
        if hidden_bias is not None:
            hidden = arrangement.add(hidden, hidden_bias)
        hidden = self._activate(hidden)
        if unit_scale is not None:
            hidden = arrangement.scale(hidden, unit_scale)
        output = arrangement.matmul(hidden, output_kernel)
        return output if output_bias is None else arrangement.add(output, output_bias)

    def _activate(self, hidden):
        active = self.activation(hidden)
        if getattr(self.activation, "weights", None):
            raise ValueError(
                "activation must have no weights: the experts would share them. Received: "
                f"activation={self.activation!r}. Pass expert=, a function that returns a layer with it, to SparseMoE."
            )
        if not active.shape[-1:].is_compatible_with(hidden.shape[-1:]):
            raise ValueError(
                "activation must keep the width of the hidden layer. Received: "
                f"activation={self.activation!r}, which makes {active.shape[-1]} of {hidden.shape[-1]}."
            )
        return active

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_experts": self.num_experts,
            "hidden": self.hidden,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "recompute": self.recompute,
            "dropout": self.dropout,
            "seed": self.seed,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
        }
