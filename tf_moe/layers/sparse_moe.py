"""The Sparsely-Gated Mixture-of-Experts layer."""

import math
from collections.abc import Callable

import keras
import tensorflow as tf

from tf_moe import checks, gates
from tf_moe.dispatch import DROP_BY, Plan, ShardedPlan
from tf_moe.dispatch.make_plan import make_plan
from tf_moe.experts.policies import policy_with_parts
from tf_moe.experts.shared import make_shared_expert
from tf_moe.gates.ids import check_ids
from tf_moe.gates.routing import Routing, dense_gates
from tf_moe.initializers import Initializer
from tf_moe.layers.balance import balance_metrics, measure_balance
from tf_moe.layers.frozen import freeze, frozen_config, without_frozen
from tf_moe.layers.parts import experts_from_config, experts_to_config, make_experts, to_config
from tf_moe.layers.positions import Positions, flatten, restore, split_positions
from tf_moe.layers.recording import record
from tf_moe.losses import cv_squared
from tf_moe.mesh.shards import computed_where, current_shards
from tf_moe.ops.masks import attached_mask
from tf_moe.ops.screen import Screen, screen

# What the gate and the experts are made of: set afterwards, a copy or a file would have it, but not the layer.
_FIXED = {
    "num_experts", "expert_hidden", "k", "gate", "activation", "use_bias", "expert", "recompute", "expert_dropout",
    "shared_expert_hidden", "seed", "kernel_initializer", "kernel_regularizer", "kernel_constraint",
}  # fmt: skip


@keras.saving.register_keras_serializable(package="tf_moe")
class SparseMoE(keras.layers.Layer):
    """Sparsely-Gated Mixture-of-Experts layer: every token is computed by k of many experts, chosen by a gate.

    `y = sum_i G(x)_i E_i(x)` over the experts i to which the gate G gives a weight; the others are not computed. The
    layer treats each position of its input alone, over all leading dimensions at once: after an LSTM with
    `return_sequences=True`, all time steps of the batch are one large batch for the experts.

    Masked positions take no place in any expert, count in no loss and no statistic, and come back as zeros; the mask is
    passed on. In training the layer adds its balance losses, `importance_weight * CV(importance)^2 + load_weight *
    CV(load)^2`, over all unmasked positions. It does so in every call: several times if it is shared or in a
    `TimeDistributed`, and even if it is not `trainable`, for the layers before it.

    It logs `importance_cv`, `load_cv`, `max_over_mean_load`, `dropped_fraction` and `nonfinite_fraction` as metrics
    that start with its name, so all mixtures of a model, even inside its blocks, need different names. Metrics cover
    every call until Keras resets them at an epoch or at `evaluate`, including calls by a callback that predicts: Keras
    does not tell a layer who calls.

    A position with a NaN or an infinity, or with features that add up to 1e35 and so overflow in float32 once they meet
    weights, comes back as NaN, and otherwise counts as a masked one does: it reaches no expert, no other position, no
    loss and no gradient of the layer.

    For inference, `model.quantize("int8")` stores the built-in experts' kernels as 8-bit integers, and quantizes the
    shared expert like any dense layer; the gate stays in float32. `tf_moe.conversion.quantize_experts` makes a copy
    with only the experts quantized. Such a layer is loaded with a `keras.dtype_policies.DTypePolicyMap` as its
    `dtype`, which may also be passed.

    Memory at inference is bounded, even if all positions go to one expert. For T positions of width D, E experts of
    hidden width H and no `capacity_factor`, the built-in experts' buffers have at most `1.7 k T + 48 E` rows, each of
    at most `4 (4 D + 2 H)` bytes in float32, and the gate takes at most `32 E` bytes per position. With the gates
    "strictly_balanced" and "expert_choice", where a position may go to any number of experts, replace k by E. A
    `capacity_factor` fixes the number of rows, whatever the routing.

    Args:
        num_experts: Number of experts; or a pair (groups, experts in each group) for two levels.
        expert_hidden: Width of the hidden layer of the built-in experts, each `activation(x W_1) W_2`. May be None with
            `expert`, where it has no meaning.
        k: Number of experts for each position, or a pair for two levels; None for a gate that sets it itself.
            Default 4.
        gate: "noisy_top_k", the default (with a pair of experts, the hierarchical form of it), "strictly_balanced",
            "bias_balanced", "sinkhorn", "expert_choice", "switch", "dense_softmax", "hash"; or a `tf_moe.gates.Gate`
            made for the same `num_experts` and `k`, which may be several of one kind. Layers that were given one gate
            share it, also once their model is saved and loaded; `keras.models.clone_model` makes one for each.
        importance_weight: Weight of the importance loss. Default None, the gate's own
            `balance_weight`: 0.1 for the paper's gates, as in the paper, and 0 for those that need no such loss.
        load_weight: Weight of the load loss. Default None, as above.
        capacity_factor: None, the default, drops nothing. A number gives every expert room for that many times its fair
            share of the positions, in static shapes; the excess is dropped (the expert adds zero) and counted. On a
            mesh the share is of each device's positions, so uneven spread changes which are dropped.
        activation: Activation of the experts' hidden layer. It must have no weights, and a finite derivative at 0, as
            some rows are empty. Default "relu".
        output_activation: Activation of the layer's output, after the sum over experts; the paper's language models
            have "sigmoid". Default None.
        use_bias: Whether the built-in experts have biases. Default False.
        expert: None for the built-in experts; or a function without arguments that returns a new Keras layer or model
            mapping width D to width D, called once for each expert; or a list of such layers. They must treat each
            row alone: in training, `BatchNormalization` must be frozen. With a `capacity_factor`, an expert with fewer
            tokens than places gets rows of zeros too. `activation`, `use_bias` and `kernel_...` do not apply to them.
        recompute: Whether the experts' activations are computed again in the backward pass instead of kept. The routing
            is not: same experts, same noise. It saves the memory of all mixtures but the one that is differentiated:
            for a model with one it is of little use. Default False.
        kernel_initializer: Initializer of each built-in expert's kernels. Default "glorot_uniform".
        kernel_regularizer: Regularizer of the built-in experts' kernels. Default None.
        kernel_constraint: Constraint of each built-in expert's kernels. Default None.
        seed: Integer seed of dropout, and of the noise of a gate made from a name (a `Gate` has its own seed);
            or None.
        drop_by: With a `capacity_factor`, which positions a full expert drops: "position", the last ones, or "weight",
            those with the lowest gate values. Default "position".
        expert_dropout: Share of the built-in experts' hidden units dropped in training, against overfitting where each
            expert has few tokens. Each expert draws once a step, for all of its tokens. Default 0: on texts of up to
            two million words 0.4 made less difference than the seed did.
        shared_expert_hidden: Width of the hidden layer of one more expert that every token goes to, beside the k of the
            gate: what it computes is added to the mixture, before `output_activation`. Its activation, use
            of biases and dropout rate are those of the others, but it draws dropout for each token. It is an ordinary
            dense layer: on a mesh it is on every device, `recompute` does not cover it, and
            `optimizer_for(experts=...)` does not count it among the experts. Default None, no such expert.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`. The built-in experts compute in the
            layer's dtype policy, layers of `expert` in their own; gate, losses and the sum over experts in float32
            under any.

    Raises:
        ValueError: For any argument out of range, inputs that are not floating point or have rank under 2, an unknown
            width, a mask that does not have the positions' shape, or a `gate_id` that is missing, unexpected, not
            integer or misshapen.

    Call arguments:
        inputs: Floating point, `(..., D)` with at least one leading dimension and D static.
        mask: Optional bool, shaped as the leading dimensions or the first of them.
        training: Whether to do what is for training alone: the gate's noise, or its choice over the batch, dropout, the
            balance losses, and the move of the bias of `BiasBalanced`. Default False.
        gate_id: Integers for a gate that takes them, one with `num_gates` or `tf_moe.gates.Hash`, shaped as the leading
            dimensions or the first of them: `(B, T)` for inputs `(B, T, D)` is an id for each position, `(B,)` one for
            each sequence. Unless masked, a position whose id is not in 0 to `num_gates` - 1 comes back as NaN and
            is treated as one with a NaN.

    Output shape:
        As the input, `(..., D)`.

    Example:

    ```python
    model = keras.Sequential([
        keras.layers.Input((None,), dtype="int32"),
        keras.layers.Embedding(1000, 64, mask_zero=True),
        tf_moe.layers.LSTM(64, return_sequences=True),
        tf_moe.layers.SparseMoE(num_experts=32, expert_hidden=128, k=4),
        tf_moe.layers.LSTM(64, return_sequences=True),
        keras.layers.Dense(1000),
    ])
    ```

    Reference: Shazeer et al. (2017), Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer,
    sections 2 to 4 and appendices A, B, F (https://arxiv.org/abs/1701.06538).
    """

    # These may be set, and `capacity_factor`, for what is traced afterwards.
    importance_weight = checks.Checked(checks.at_least_zero)
    load_weight = checks.Checked(checks.at_least_zero)
    output_activation = checks.Checked(checks.activation)
    drop_by = checks.Checked(checks.one_of, DROP_BY)

    def __init__(
        self,
        num_experts: int | tuple[int, int],
        expert_hidden: int | None = None,
        k: int | tuple[int, int] | None = 4,
        gate: "str | gates.Gate" = "noisy_top_k",
        importance_weight: float | None = None,
        load_weight: float | None = None,
        capacity_factor: float | None = None,
        activation: str | Callable | None = "relu",
        output_activation: str | Callable | None = None,
        use_bias: bool = False,
        expert: Callable[[], keras.layers.Layer] | list[keras.layers.Layer] | None = None,
        recompute: bool = False,
        kernel_initializer: Initializer = "glorot_uniform",
        kernel_regularizer: str | keras.regularizers.Regularizer | None = None,
        kernel_constraint: str | keras.constraints.Constraint | None = None,
        seed: int | None = None,
        drop_by: str = "position",
        expert_dropout: float = 0.0,
        shared_expert_hidden: int | None = None,
        **kwargs,
    ):
        if type(self) is SparseMoE and kwargs.get("name") is None:
            kwargs["name"] = _next_name()  # Keras would make "sparse_mo_e" of the name of the class
        super().__init__(**kwargs)
        self.seed = checks.seed(seed)
        self.gate = gates.get(gate, num_experts, k, self.seed)
        self._gate_name, self._gate_config = None, None
        if isinstance(gate, str):
            self._gate_name, self._gate_config = gate, _config_of(self.gate)
        else:
            self.gate.was_passed = True
        self.gate.is_made = True  # not earlier: a subclass may set what its superclass has set
        self.num_experts, self.k = self.gate.num_experts, self.gate.k
        self.expert_hidden = expert_hidden
        if expert is None:
            hint = ", the width of the experts' hidden layer"
            self.expert_hidden = checks.integer("expert_hidden", expert_hidden, hint=hint)
        self.importance_weight = self.gate.balance_weight if importance_weight is None else importance_weight
        self.load_weight = self.gate.balance_weight if load_weight is None else load_weight
        self.drop_by = drop_by
        self.activation = keras.activations.get(activation)
        self.output_activation = output_activation
        self.use_bias = checks.boolean("use_bias", use_bias)
        self.expert = expert
        self.capacity_factor = capacity_factor
        self.recompute = checks.boolean("recompute", recompute)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.expert_dropout = checks.zero_to_below_one("expert_dropout", expert_dropout)
        self.shared_expert_hidden = shared_expert_hidden
        if shared_expert_hidden is not None:
            self.shared_expert_hidden = checks.integer("shared_expert_hidden", shared_expert_hidden)
        self.experts = make_experts(
            self.total_experts,
            self.expert_hidden,
            expert,
            activation=self.activation,
            use_bias=self.use_bias,
            recompute=self.recompute,
            dropout=self.expert_dropout,
            seed=self.seed,
            kernel_initializer=self.kernel_initializer,
            kernel_regularizer=self.kernel_regularizer,
            kernel_constraint=self.kernel_constraint,
            dtype=self.dtype_policy,
        )
        self.shared_expert = None
        self._frozen = ()  # names of parts that a config says are not trainable
        self.balance_metrics = balance_metrics(self.name)
        self._metric_variables = tf.Module()  # see _trackable_children
        self._metric_variables.variables_of_metrics = [v for m in self.balance_metrics.values() for v in m.variables]
        self.input_spec = keras.layers.InputSpec(min_ndim=2)  # one tensor, and not a list of them
        self.supports_masking = True
        self.is_made = True

    def __setattr__(self, name, value):
        checks.not_fixed(self, name, value, _FIXED)
        super().__setattr__(name, value)

    @property
    def capacity_factor(self) -> float | None:
        """Room of each expert over its fair share; may be set, for what is traced afterwards."""
        return self._capacity_factor

    @capacity_factor.setter
    def capacity_factor(self, value: float | None):
        if value is not None:
            kind = "a positive number, or None to drop nothing"
            value = checks.number("capacity_factor", value, kind, lambda x: x > 0)
        self._capacity_factor = value
        self.supports_jit = self.expert is None or value is not None

    @property
    def total_experts(self) -> int:
        """Number of experts over both levels."""
        return math.prod(self.num_experts) if isinstance(self.num_experts, tuple) else self.num_experts

    @property
    def total_k(self) -> int:
        """Number of experts for each position over both levels."""
        return math.prod(self.k) if isinstance(self.k, tuple) else self.k

    @property
    def num_logits(self) -> int:
        """Number of logits for each position; on the second of two levels only the chosen groups have any."""
        if isinstance(self.num_experts, tuple):
            return self.num_experts[0] + self.k[0] * self.num_experts[1]
        return self.num_experts

    def build(self, input_shape):
        is_shape = isinstance(input_shape, (tuple, list, tf.TensorShape))  # a config may hold anything
        if not is_shape or len(input_shape) < 2 or not input_shape[-1]:
            raise ValueError(
                f"{type(self).__name__} needs inputs (..., D) of rank 2 or more with a static width D, 1 or more. "
                f"Received: input shape {input_shape}."
            )
        width = input_shape[-1]
        for part in (self.gate, self.experts):
            if not part.built:  # a gate may be shared with another layer
                part.build((None, width))
        if self.shared_expert_hidden is not None:
            self.shared_expert = make_shared_expert(
                self.shared_expert_hidden,
                width,
                activation=self.activation,
                use_bias=self.use_bias,
                dropout=self.expert_dropout,
                # Another seed than the gate's, whose noise would have the same random bits.
                seed=None if self.seed is None else (self.seed + 1) % 2**63,
                kernel_initializer=self.kernel_initializer,
                kernel_regularizer=self.kernel_regularizer,
                kernel_constraint=self.kernel_constraint,
                dtype=self.dtype_policy,
            )
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: width})
        freeze(self, self._parts(), self._frozen)

    def _parts(self) -> dict[str, keras.layers.Layer]:
        parts = {"gate": self.gate, "experts": self.experts, "shared_expert": self.shared_expert}
        return {name: part for name, part in parts.items() if part is not None}

    def call(self, inputs, mask=None, training=False, gate_id=None):
        inputs = tf.convert_to_tensor(inputs)  # `stateless_call` passes on what it gets
        if mask is None and gate_id is not None:
            mask = attached_mask(inputs)
        with computed_where(self.experts.weights[0] if self.experts.weights else None):
            return self._call(inputs, mask, training, gate_id)

    def _call(self, inputs, mask, training, gate_id):
        positions, shards = self._flatten(inputs, mask, gate_id), current_shards()
        if shards is not None:
            positions = split_positions(positions, inputs, shards)
        screened, routing = self._route(positions, training)
        record(self, routing)
        tokens = screened.clear(positions.tokens)
        plan = make_plan(
            tokens,
            routing.expert_index,
            routing.combine_weights,
            self.total_experts,
            self.total_k,
            capacity_factor=self.capacity_factor,
            drop_by=self.drop_by,
            takes_block=self.experts.takes_block(training),
            shards=shards,
        )
        rows = plan.dispatch(tokens)
        rows = self.experts(rows, plan.counts, capacity=plan.capacity, places=plan.places, training=training)
        outputs = tf.cast(plan.combine(rows, routing.combine_weights), self.compute_dtype)
        if self.shared_expert is not None:
            outputs += tf.cast(self.shared_expert(tokens, training=training), self.compute_dtype)
        outputs = screened.fill(self.output_activation(outputs))
        if training and (self.importance_weight or self.load_weight or tf.is_tensor(routing.loss)):
            # Keras adds it to the loss of the model, which has this dtype, and does not cast it.
            self.add_loss(tf.cast(self._balance_loss(routing), keras.config.floatx()))
        self._update_metrics(routing, plan, screened)
        return restore(outputs, inputs, shards)

    def route(
        self,
        inputs: tf.Tensor,
        mask: tf.Tensor | None = None,
        training: bool = False,
        gate_id: tf.Tensor | None = None,
    ) -> Routing:
        """What the gate decides for these inputs, without computing any expert.

        Args:
            inputs: Floating point `(..., D)`, as in a call.
            mask: Optional bool, shaped as the leading dimensions or the first of them; by default the inputs' Keras
                mask.
            training: Whether the gate decides as in training; the bias of `BiasBalanced` then moves. Default False.
            gate_id: Integers for a gate that takes them, as in a call.

        Returns:
            A `Routing` over the T positions of the flattened leading dimensions, with `gates` filled in up to 4096
            experts.

        Raises:
            ValueError: As a call, for inputs, mask and `gate_id`.

        Example:

        >>> tf_moe.layers.SparseMoE(8, 16, k=2).route(tf.random.normal([3, 5, 4])).expert_index.shape
        TensorShape([15, 2])
        """
        mask = attached_mask(inputs) if mask is None else mask
        # As Keras does before a call: rounded to the compute dtype, tokens may go elsewhere.
        inputs = self.dtype_policy.convert_input(tf.convert_to_tensor(inputs), self.autocast, self.input_dtype)
        if not self.built:
            self.build(inputs.shape)
        _, routing = self._route(self._flatten(inputs, mask, gate_id), training)
        return routing._replace(gates=dense_gates(routing, self.total_experts))

    def _route(self, positions: Positions, training) -> tuple[Screen, Routing]:
        """Which tokens are valid, and what the gate decides for these."""
        screened, options = screen(positions.tokens, positions.mask), {}
        if positions.gate_id is not None:
            screened = screened._replace(valid=screened.valid & self.gate.knows(positions.gate_id))
            options["gate_id"] = positions.gate_id  # a gate of one's own need not have the argument
        return screened, self.gate(positions.tokens, mask=screened.valid, training=training, **options)

    def _flatten(self, inputs, mask, gate_id) -> Positions:
        checks.floating("SparseMoE", inputs)
        if inputs.shape[-1] is None:  # of a `tf.function` for any shape
            inputs = tf.ensure_shape(inputs, [*inputs.shape[:-1], self.input_spec.axes[-1]])
        self.gate.check_takes(gate_id)
        return flatten(inputs, mask, gate_id)

    def _balance_loss(self, routing: Routing):
        loss = tf.cast(routing.loss, tf.float32)
        loss += self.importance_weight * cv_squared(routing.importance)
        return loss + self.load_weight * cv_squared(routing.load)

    def _update_metrics(self, routing: Routing, plan: Plan | ShardedPlan, screened: Screen):
        nonfinite = screened.nonfinite_fraction()
        values = measure_balance(routing.importance, routing.load, plan.dropped, plan.assigned, nonfinite)
        for name, value in values.items():
            self.balance_metrics[name].update_state(tf.stop_gradient(value))

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_output_spec(self, inputs, mask=None, training=False, gate_id=None):
        checks.floating("SparseMoE", inputs)
        self.gate.check_takes(gate_id)
        if gate_id is not None:
            check_ids(gate_id, inputs)
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "dtype": keras.dtype_policies.serialize(self._policy_with_parts()),
            "num_experts": self.num_experts,
            "expert_hidden": self.expert_hidden,
            "k": self.k,
            "gate": self._gate_to_config(),
            "importance_weight": self.importance_weight,
            "load_weight": self.load_weight,
            "capacity_factor": self.capacity_factor,
            "activation": keras.activations.serialize(self.activation),
            "output_activation": keras.activations.serialize(self.output_activation),
            "use_bias": self.use_bias,
            "expert": self.expert and experts_to_config(self.expert, self.experts),
            "recompute": self.recompute,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "seed": self.seed,
            "drop_by": self.drop_by,
            "expert_dropout": self.expert_dropout,
            "shared_expert_hidden": self.shared_expert_hidden,
            **frozen_config(self, self._parts(), self._frozen),
        }

    def _gate_to_config(self) -> str | dict:
        # A name would make a gate of its own for each layer that has this one, and one without what was set later.
        if self.gate.was_passed or _config_of(self.gate) != self._gate_config:
            return to_config(self.gate, self)
        return self._gate_name

    def _policy_with_parts(self) -> keras.dtype_policies.DTypePolicy:
        """The layer's policy; with those of its parts, where experts or the shared one have been quantized."""
        if not self.built:
            return self.dtype_policy
        parts = [self.experts] if self.expert is None else []  # layers of a bank have their policies in their configs
        if self.shared_expert is not None:
            parts += [layer for layer in self.shared_expert.layers if layer.weights]
        return policy_with_parts(self, parts)

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        # tf.saved_model.save refuses variables that it does not find, and of Keras's metrics it knows nothing. In a
        # checkpoint they are not wanted: it would not fit a release with one metric more.
        children = super()._trackable_children(save_type, **kwargs)
        if save_type == "checkpoint":
            children.pop("_metric_variables", None)
        return children

    @classmethod
    def from_config(cls, config):
        config, frozen = without_frozen(config)
        layer = cls(**{**config, "expert": experts_from_config(config.get("expert"))})
        layer._frozen = frozen
        return layer


def _config_of(gate: gates.Gate) -> str:
    """What a gate computes by, as text: Keras tracks dictionaries. Whether it trains is in the layer's own config."""
    return str({key: value for key, value in gate.get_config().items() if key != "trainable"})


def _next_name() -> str:
    """The names "sparse_moe", "sparse_moe_1" and so on, as Keras numbers its layers."""
    number = keras.backend.get_uid("sparse_moe") - 1
    return f"sparse_moe_{number}" if number else "sparse_moe"
