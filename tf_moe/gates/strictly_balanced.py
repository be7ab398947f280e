"""Strictly balanced gating: in training every expert receives the same number of tokens."""

import keras
import tensorflow as tf

from tf_moe.gates.gate import Gate, Initializer, check_choice, mask_rows
from tf_moe.gates.routing import Routing, count_by_expert
from tf_moe.losses import importance, threshold_loss
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
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If not 1 <= k <= num_experts.

    Example:

    >>> gate = tf_moe.gates.StrictlyBalanced(num_experts=4, k=2)
    >>> gate(tf.random.normal([8, 16]), training=True).load
    <tf.Tensor: shape=(4,), dtype=float32, numpy=array([4., 4., 4., 4.], dtype=float32)>

    Reference: appendix F of Shazeer et al. (2017).
    """

    def __init__(
        self,
        num_experts: int,
        k: int,
        kernel_initializer: Initializer = "zeros",
        seed: int | None = None,
        **kwargs,
    ):
        check_choice(num_experts, k)
        super().__init__(num_experts, k, seed=seed, **kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        self.kernel = self.add_weight(
            shape=(input_shape[-1], self.num_experts), initializer=self.kernel_initializer, name="kernel"
        )
        start = keras.initializers.Constant(1.0 - self.k / self.num_experts)
        self.thresholds = self.add_weight(shape=(self.num_experts,), initializer=start, name="thresholds")

    def call(self, inputs, mask=None, training=False) -> Routing:
        scores = tf.nn.softmax(tf.matmul(inputs, self.kernel), axis=-1)
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
        weights, index = tf.math.top_k(gates, self._most_experts_of_a_token(gates))
        load = count_by_expert(weights, index, self.num_experts)
        return Routing(index, weights, None, importance(gates), load, loss)

    def _most_experts_of_a_token(self, gates):
        """K of the routing. It depends on the step; where shapes must be static it is E."""
        if compiled_by_xla():
            return self.num_experts
        return tf.maximum(1, tf.reduce_max(tf.math.count_nonzero(gates, axis=-1, dtype=tf.int32), axis=0))

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


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
    scores = tf.transpose(tf.stop_gradient(scores))  # (E, T)
    number = tf.range(tf.shape(scores)[1])  # of each token
    unmasked = tf.size(number)
    if mask is not None:
        number = tf.cumsum(tf.cast(mask, tf.int32), exclusive=True)  # among the unmasked ones
        unmasked = tf.math.count_nonzero(mask, dtype=tf.int32)
        scores = tf.where(tf.expand_dims(mask, 0), scores, -1.0)
    m = tf.cast(tf.round(k * tf.cast(unmasked, tf.float32) / num_experts), tf.int32)
    m = tf.clip_by_value(m, tf.minimum(1, unmasked), unmasked)
    turn = tf.expand_dims(number, 0) - tf.expand_dims(tf.range(num_experts) * m, 1)
    turn = tf.argsort(tf.math.floormod(turn, tf.maximum(unmasked, 1)), stable=True)
    # (E, T): each expert's tokens, first in its order of preference among equals, then best first.
    order = tf.argsort(tf.gather(scores, turn, batch_dims=1), direction="DESCENDING", stable=True)
    token = tf.gather(turn, order, batch_dims=1)
    rank = tf.argsort(token)  # the inverse of that permutation
    return tf.transpose(rank < m)
