"""The base class of gates."""

import contextlib

import keras
import tensorflow as tf

from tf_moe import checks
from tf_moe.gates.ids import spread_ids
from tf_moe.gates.numbers import check_numbers
from tf_moe.gates.routing import Routing
from tf_moe.initializers import Initializer, PerExpert
from tf_moe.mesh.shards import computed_where, current_shards
from tf_moe.ops.masks import attached_mask, mask_rows
from tf_moe.ops.noise import Noise, between_0_and_1, next_seed

# Set afterwards, a copy or a file would have it, but not what the gate was built with.
_FIXED = {"num_experts", "k", "num_gates", "seed", "noisy", "kernel_initializer", "noise_kernel_initializer"}


class Gate(keras.layers.Layer):
    """Base class of gates: maps tokens `(T, D)` to a `Routing`.

    A gate is a Keras layer that always computes in float32, whatever the dtype policy around it: a choice between
    experts should not hang on bfloat16's eight bits. To make one of your own, implement `build` and `call`,
    and pass it to `SparseMoE`; `LinearGate` saves some of that where logits are x W_g. A model with it can be loaded if
    its class is registered by `keras.saving.register_keras_serializable`, and `get_config` returns the arguments that
    it has beside those below.

    It is called on tensors, by `SparseMoE` or in a function. In a functional model it cannot stand by itself: what it
    returns is a `Routing`, part of which may be None.

    A gate may be several: with `num_gates`, G of them choose among the same experts, one for each modality, task or
    language, and a token's `gate_id` says which of them chooses for it. Each has kernels of its own, stacked as
    `(G, D, E)`. Everything else is that of one gate over all tokens: in particular what balances the experts balances
    their tokens of all gates together, so that a gate is free to prefer some experts where others make up for it.

    Args:
        num_experts: Number of experts E; a pair (groups, experts in each) for two levels.
        k: Number of experts chosen for a token, 1 to `num_experts`; a pair for two levels.
        seed: Integer seed of the noise, or None for a different one in every program.
        num_gates: Number of gates G; None, the default, is one gate that takes no `gate_id`.
        **kwargs: `name` and other arguments of `keras.layers.Layer`; of `dtype`, only "float32".

    Raises:
        ValueError: If `num_experts`, `k` or `num_gates` is out of range, `seed` no integer, `dtype` another, or when
            called: inputs that are not floating point `(T, D)`, a mask of another shape than `(T,)`, a `gate_id` that
            is missing, not wanted, of another shape or no integers.

    Call arguments:
        inputs: `(T, D)`.
        mask: Optional bool `(T,)`; tokens where it is False get zero weights and count in no statistic.
        training: Whether to do what is for training alone, such as noise and losses. Default False. With noise, the
            `load` of the noisy top-k gates is the smooth estimate; in all other cases it is the plain number.
        gate_id: Integers `(T,)`, for a gate that `takes_gate_id`. With `num_gates`, a token whose id is none of 0 to
            `num_gates` - 1 is treated as a masked one.

    Attributes:
        balance_weight: Weight of each of the two balance losses of a `SparseMoE` that was not given others: 0.1, the
            paper's, and 0 for a gate that needs no such loss.
        chooses_k: Whether k is for the user to choose. A gate for which it is False takes None for it.
        can_be_several: Whether there can be `num_gates`. A gate for which it is True makes its kernels by `add_kernel`,
            multiplies with them by `tf_moe.gates.products`, and has the argument `gate_id` in `call`; of a `LinearGate`
            only the last is left to do.

    Example:

    ```python
    @keras.saving.register_keras_serializable(package="mine")
    class ByFirstFeature(tf_moe.gates.Gate):  # which learns nothing
        def build(self, input_shape):
            pass

        def call(self, inputs, mask=None, training=False):
            first = tf.cast(tf.math.floor(1e3 * inputs[:, :1]), tf.int32)
            index = tf.math.floormod(first + tf.range(self.k), self.num_experts)
            weights = tf.fill(tf.shape(index), 1 / self.k)
            if mask is not None:
                weights = tf.where(mask[:, None], weights, 0.0)
            importance = tf.math.bincount(tf.reshape(index, [-1]), tf.reshape(weights, [-1]), self.num_experts)
            return tf_moe.gates.Routing(index, weights, None, importance, load=importance * self.k)

    layer = tf_moe.layers.SparseMoE(4, expert_hidden=16, k=2, gate=ByFirstFeature(4, 2))
    outputs = layer(tf.random.normal([5, 8]))
    again = tf_moe.layers.SparseMoE.from_config(layer.get_config())  # as when a model is loaded
    ```

    Reference: Ma et al. (2018), Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts.
    """

    balance_weight = 0.1
    chooses_k = True
    can_be_several = False

    def __init__(
        self,
        num_experts: int | tuple[int, int],
        k: int | tuple[int, int],
        seed: int | None = None,
        num_gates: int | None = None,
        **kwargs,
    ):
        kwargs.setdefault("name", "gate")
        dtype = kwargs.pop("dtype", None)
        if dtype is not None and keras.dtype_policies.get(dtype).name != "float32":
            raise ValueError(f"A gate computes in float32 alone. Received: dtype={dtype!r}. Leave it out.")
        super().__init__(dtype="float32", **kwargs)
        self.num_experts, self.k = check_numbers(num_experts, k)
        self.num_gates = None if num_gates is None else checks.integer("num_gates", num_gates)
        if num_gates is not None and not self.can_be_several:
            raise ValueError(f"{type(self).__name__} cannot be several gates. Received: num_gates={num_gates}.")
        self.seed = checks.seed(seed)
        self.seed_generator = keras.random.SeedGenerator(self.seed)
        self.input_spec = keras.layers.InputSpec(ndim=2)
        self.supports_masking = True
        self.was_passed = False  # as an object to a layer, and may be in several

    def __setattr__(self, name, value):
        checks.not_fixed(self, name, value, _FIXED)
        super().__setattr__(name, value)

    def build(self, input_shape):
        raise NotImplementedError(f"{type(self).__name__} must create its weights in build(input_shape).")

    def call(self, inputs: tf.Tensor, mask: tf.Tensor | None = None, training: bool = False) -> Routing:
        raise NotImplementedError(f"{type(self).__name__} must implement call(inputs, mask, training).")

    def __call__(self, inputs, mask=None, **kwargs):
        inputs = keras.ops.convert_to_tensor(inputs)
        checks.floating("A gate", inputs)
        gate_id = kwargs.get("gate_id")
        self.check_takes(gate_id)
        if gate_id is not None:
            kwargs["gate_id"] = gate_id = spread_ids(gate_id, inputs)
        mask = attached_mask(inputs) if mask is None else mask  # Keras would pass it on when it is too late
        if mask is not None:
            mask = checks.mask(mask, inputs)
        if self.num_gates is not None:
            known = self.knows(gate_id)
            mask = known if mask is None else mask & known
            kwargs["gate_id"] = tf.cast(tf.where(mask, gate_id, self.num_gates), tf.int32)
        if mask is not None:
            kwargs["mask"] = mask
            inputs = mask_rows(inputs, mask)  # which may hold anything, NaN too
        if "training" in kwargs:
            kwargs["training"] = checks.training(kwargs["training"])
        if not self.built:
            self.build(inputs.shape)
        # A gate without weights is where the layer is that it is part of.
        with computed_where(self.weights[0]) if self.weights else contextlib.nullcontext():
            return super().__call__(inputs, **kwargs)

    @property
    def takes_gate_id(self) -> bool:
        """Whether it can be called with a `gate_id`; with `num_gates` it must."""
        return self.num_gates is not None

    def check_takes(self, gate_id) -> None:
        """Raise ValueError where a `gate_id` is missing, or is not wanted."""
        if gate_id is None and self.num_gates is not None:
            raise ValueError(
                f"{type(self).__name__} with num_gates={self.num_gates} must be told which gate chooses for which "
                "token. Received: gate_id=None. Pass gate_id=ids, integers from 0 on, in the call."
            )
        if gate_id is not None and not self.takes_gate_id:
            raise ValueError(
                f"{type(self).__name__} takes no gate_id. Received: gate_id={gate_id!r}. Leave it out, or make the "
                "gate with num_gates=..., for a gate for each id."
            )

    def knows(self, gate_id: tf.Tensor) -> tf.Tensor:
        """Whether there is such a gate, bool of the shape of the ids; True for a gate to which any id will do."""
        if self.num_gates is None:
            return tf.ones_like(gate_id, tf.bool)
        return (gate_id >= 0) & (gate_id < self.num_gates)

    def add_kernel(self, name: str, shape: tuple[int, int], initializer: Initializer) -> keras.Variable:
        """A weight of this shape; `(G, ...)` where there are several gates, each gate's slice drawn by itself."""
        if self.num_gates is not None:
            shape, initializer = (self.num_gates, *shape), PerExpert(initializer)
        return self.add_weight(shape=shape, initializer=initializer, name=name)

    def compute_mask(self, inputs, mask=None):
        return None  # a Routing has used up the mask: masked tokens are those with zero weights

    def noise(self, shape: list[int] | tf.Tensor) -> tf.Tensor:
        """Standard normal float32 numbers of a shape, new in every call."""
        return self.new_noise().whole(shape)

    def new_noise(self) -> Noise:
        """Noise of a new seed, to be drawn as a whole or by rows. To change the noise of a gate, override this."""
        return Noise(next_seed(self.seed_generator))

    def uniform_noise(self, shape: list[int] | tf.Tensor) -> tf.Tensor:
        """Uniform float32 numbers between 0 and 1, new in every call."""
        return between_0_and_1(shape, next_seed(self.seed_generator), current_shards())

    def get_config(self):
        config = super().get_config()
        del config["dtype"]
        own = {"num_experts": self.num_experts, "k": self.k, "seed": self.seed}
        if self.can_be_several:
            own["num_gates"] = self.num_gates
        return {**config, **own}
