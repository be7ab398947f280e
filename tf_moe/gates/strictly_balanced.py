"""Strictly balanced gating: in training every expert receives the same number of tokens."""

import keras
import tensorflow as tf

from tf_moe.gates.gate import Gate, Initializer, check_choice, mask_rows
from tf_moe.gates.routing import Routing
from tf_moe.gates.several import products
from tf_moe.losses import importance, threshold_loss
from tf_moe.mesh.shards import EXPERT, current_shards
from tf_moe.ops.xla import compiled_by_xla


@keras.saving.register_keras_serializable(package="tf_moe")
class StrictlyBalanced(Gate):
    """Strictly balanced gating: experts choose tokens in training, tokens pass learned thresholds at evaluation.

    ```
    S(x) = softmax(x W_g)
    training:   M = each expert's m = k T / E highest values over the batch
    evaluation: M_i = 1 if S(x)_i > threshold_i
    G(x)_i = S(x)_i M_i / sum_j S(x)_j M_j
    ```

    So k is the mean number of experts a token meets; one token may meet more, or none, and then its output is zero.
    The thresholds learn, by a loss of their own in `Routing.loss`, to let pass what the batch would choose.

    Weights: `kernel` W_g `(D, E)`, zeros at first, when ties make every token meet k experts in training; `thresholds`
    `(E,)`, in units of 1/E, the mean of S, so that an optimizer's usual step suits any number of experts. They start at
    1 - k/E: the untrained gate, whose values are all 1/E, lets everything pass.

    Args:
        num_experts: Number of experts E.
        k: Mean number of experts for a token. With 1, G is S times M, or the gate would learn nothing from tokens with
            one expert.
        kernel_initializer: Initializer of W_g. Default "zeros".
        seed: Not used, since nothing is drawn; there as in the other gates.
        **kwargs: `num_gates`, see `Gate`, and arguments of `keras.layers.Layer`. Several gates share the thresholds, as
            experts choose among the tokens of all gates.

    Raises:
        ValueError: If not 1 <= k <= num_experts.

    Example:

    >>> gate = tf_moe.gates.StrictlyBalanced(num_experts=4, k=2)
    >>> gate(tf.random.normal([8, 16]), training=True).load
    <tf.Tensor: shape=(4,), dtype=float32, numpy=array([4., 4., 4., 4.], dtype=float32)>

    Reference: appendix F of Shazeer et al. (2017).
    """

    can_be_several = True

    def __init__(
        self,
        num_experts: int,
        k: int,
        kernel_initializer: Initializer = "zeros",
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(*check_choice(num_experts, k), seed=seed, **kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: input_shape[-1]})
        self.kernel = self.add_kernel("kernel", (input_shape[-1], self.num_experts), self.kernel_initializer)
        start = keras.initializers.Constant(1.0 - self.k / self.num_experts)
        self.thresholds = self.add_weight(shape=(self.num_experts,), initializer=start, name="thresholds")

    def call(self, inputs, mask=None, training=False, gate_id=None) -> Routing:
        (logits,) = products(inputs, [self.kernel], gate_id)
        scores = tf.nn.softmax(logits, axis=-1)
        thresholds = self.thresholds / self.num_experts
        loss = 0.0
        if training:
            chosen = batchwise_choice(scores, self.k, mask)
            # The gate learns from the task, the thresholds from this: so the scores are held still here.
            loss = threshold_loss(tf.stop_gradient(scores), thresholds, chosen, mask)
        else:
            chosen = scores > thresholds
        gates = mask_rows(scores * tf.cast(chosen, tf.float32), mask)
        if self.k > 1:
            gates = tf.math.divide_no_nan(gates, tf.reduce_sum(gates, axis=-1, keepdims=True))
        load = tf.reduce_sum(tf.cast(tf.stop_gradient(gates) > 0, tf.float32), axis=0)
        index, weights = _choices(gates)
        return Routing(index, weights, None, importance(gates), load, loss)

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _choices(gates: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Experts and weights `(T, K)`, K being the most experts of a token in this step; E where shapes must be static."""
    if compiled_by_xla() or current_shards():
        index = tf.zeros_like(gates, tf.int32) + tf.expand_dims(tf.range(gates.shape[-1]), 0)
        return index, gates
    most = tf.reduce_max(tf.math.count_nonzero(gates, axis=-1, dtype=tf.int32), axis=0)
    weights, index = tf.math.top_k(gates, tf.maximum(1, most))
    return index, weights


def batchwise_choice(scores: tf.Tensor, k: int, mask: tf.Tensor | None = None) -> tf.Tensor:
    """For each expert its m = k T / E highest values over the batch of T unmasked tokens, m rounded, at least 1.

    Where values tie, expert i prefers tokens from number i * m on, around the unmasked ones: so an untrained gate gives
    every token k experts rather than the first m tokens all of them.

    Args:
        scores: `(T, E)`, not negative.
        k: Mean number of experts for a token.
        mask: Optional bool `(T,)`.

    Returns:
        Bool `(T, E)`, without gradient.
    """
    num_experts = scores.shape[-1]
    scores, shards = tf.transpose(tf.stop_gradient(scores)), current_shards()  # (E, T)
    if shards and mask is not None:
        mask = shards.whole(mask)
    size = tf.shape(scores)[1]
    number = tf.range(size)  # of each token
    unmasked = size
    if mask is not None:
        number = tf.cumsum(tf.cast(mask, tf.int32), exclusive=True)  # among the unmasked ones
        unmasked = tf.math.count_nonzero(mask, dtype=tf.int32)
        scores = tf.where(tf.expand_dims(mask, 0), scores, -1.0)
    m = tf.cast(tf.round(k * tf.cast(unmasked, tf.float32) / num_experts), tf.int32)
    m = tf.clip_by_value(m, tf.minimum(1, unmasked), unmasked)
    first = tf.math.floormod(tf.range(num_experts) * m, tf.maximum(unmasked, 1))  # number of each expert's first
    first = tf.reduce_sum(tf.cast(tf.expand_dims(number, 0) < tf.expand_dims(first, 1), tf.int32), axis=1)
    turn = tf.math.floormod(tf.expand_dims(first, 1) + tf.expand_dims(tf.range(size), 0), tf.maximum(size, 1))
    if shards:  # an all-to-all: every device chooses for its experts, among the tokens of all
        scores, turn = shards.lay_out(scores, {0: EXPERT}), shards.lay_out(turn, {0: EXPERT})
    # (E, T): each expert's tokens, first in its order of preference among equals, then best first.
    order = tf.argsort(tf.gather(scores, turn, batch_dims=1), direction="DESCENDING", stable=True)
    token = tf.gather(turn, order, batch_dims=1)
    rank = tf.argsort(token)  # the inverse of that permutation
    return tf.transpose(rank < m)
