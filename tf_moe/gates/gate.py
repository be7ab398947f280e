"""The base class of gates."""

from collections.abc import Callable

import keras
import tensorflow as tf

from tf_moe import checks
from tf_moe.gates.routing import Routing
from tf_moe.mesh.noise import next_seed, normal
from tf_moe.mesh.shards import computed_where, current_shards


class Gate(keras.layers.Layer):
    """Base class of gates: maps tokens `(T, D)` to a `Routing`.

    A gate is a Keras layer that always computes in float32, whatever the dtype policy around it: a choice between
    experts should not hang on bfloat16's eight bits. To add one, implement `build` and `call`, and enter it in
    `tf_moe.gates.GATES`.

    Args:
        num_experts: Number of experts E; a pair (groups, experts in each) for two levels.
        k: Number of experts chosen for a token, 1 to `num_experts`; a pair for two levels.
        seed: Integer seed of the noise, or None for a different one in every program.
        **kwargs: `name` and other arguments of `keras.layers.Layer`, but not `dtype`.

    Raises:
        ValueError: If `num_experts` or `k` is out of range, `seed` no integer, or when called: inputs that are not
            floating point `(T, D)`, or a mask of another shape than `(T,)`.

    Call arguments:
        inputs: `(T, D)`.
        mask: Optional bool `(T,)`; tokens where it is False get zero weights and count in no statistic.
        training: Whether noise is added and `load` is the smooth estimate. Default False.

    Attributes:
        balance_weight: Weight of each of the two balance losses of a `SparseMoE` that was not given others: 0.1, the
            paper's, and 0 for a gate that is balanced by other means.
    """

    balance_weight = 0.1

    def __init__(self, num_experts, k, seed: int | None = None, **kwargs):
        kwargs.setdefault("name", "gate")
        kwargs.pop("dtype", None)
        super().__init__(dtype="float32", **kwargs)
        self.num_experts = plain(num_experts)
        self.k = plain(k)
        self.seed = checks.seed(seed)
        self.seed_generator = keras.random.SeedGenerator(self.seed)
        self.input_spec = keras.layers.InputSpec(ndim=2)
        self.supports_masking = True

    def build(self, input_shape):
        raise NotImplementedError(f"{type(self).__name__} must create its weights in build(input_shape).")

    def call(self, inputs: tf.Tensor, mask: tf.Tensor | None = None, training: bool = False) -> Routing:
        raise NotImplementedError(f"{type(self).__name__} must implement call(inputs, mask, training).")

    def __call__(self, inputs, *args, **kwargs):
        inputs = keras.ops.convert_to_tensor(inputs)
        checks.floating("A gate", inputs)
        if kwargs.get("mask") is not None:
            kwargs["mask"] = checks.mask(kwargs["mask"], inputs)
            inputs = mask_rows(inputs, kwargs["mask"])  # which may hold anything, NaN too
        if "training" in kwargs:
            kwargs["training"] = checks.training(kwargs["training"])
        if not self.built:
            self.build(inputs.shape)
        with computed_where(self.weights[0] if self.weights else None):
            return super().__call__(inputs, *args, **kwargs)

    def compute_mask(self, inputs, mask=None):
        return None  # a Routing has used up the mask: masked tokens are those with zero weights

    def noise(self, shape: tf.Tensor) -> tf.Tensor:
        """Standard normal float32 numbers, new in every call."""
        seed, shards = next_seed(self.seed_generator), current_shards()
        return normal(tf.get_static_value(shape), seed, shards) if shards else tf.random.stateless_normal(shape, seed)

    def get_config(self):
        config = super().get_config()
        del config["dtype"]
        return {**config, "num_experts": self.num_experts, "k": self.k, "seed": self.seed}


def plain(value):
    """Numbers or pairs in one form, as they come from users (tuples) or from JSON (lists)."""
    return tuple(value) if isinstance(value, (tuple, list)) else value


def check_choice(num_experts: int, k: int, of: str = "num_experts") -> tuple[int, int]:
    """Both numbers; raises ValueError unless k experts can be chosen out of num_experts."""
    num_experts, k = checks.integer(of, num_experts), checks.integer("k", k)
    if k > num_experts:
        raise ValueError(
            f"k cannot exceed the number of experts to choose from. Received: k={k}, {of}={num_experts}. "
            f"Pass k<={num_experts}, or more experts."
        )
    return num_experts, k


def check_levels(num_experts: tuple[int, int], k: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Both pairs; raises ValueError unless they are pairs, and of each level so many can be chosen."""
    for name, value in (("num_experts", num_experts), ("k", k)):
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise ValueError(
                f"{name} must be a pair for two levels, such as num_experts=(16, 256), k=(2, 2). "
                f"Received: {name}={value!r}."
            )
    (groups, groups_chosen), (experts, chosen) = (
        check_choice(num_experts[level], k[level], f"num_experts[{level}]") for level in (0, 1)
    )
    return (groups, experts), (groups_chosen, chosen)


def mask_rows(values: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """Zero the rows `(T, ...)` of masked tokens."""
    if mask is None:
        return values
    while mask.shape.rank < values.shape.rank:
        mask = tf.expand_dims(mask, -1)
    return tf.where(mask, values, tf.zeros([], values.dtype))


def sum_rows(values: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """Sum of the rows `(T, E)` of unmasked tokens, `(E,)`; the rows of masked ones must be finite too."""
    if mask is None:
        return tf.reduce_sum(values, axis=0)
    # As a product, since the masked matrix would be one more of that size to write and read.
    return tf.squeeze(tf.matmul(tf.expand_dims(tf.cast(mask, values.dtype), 0), values), 0)


Initializer = str | Callable | keras.initializers.Initializer
