"""Strictly balanced gating: in training every expert receives the same number of tokens."""

import keras
import tensorflow as tf

from tf_moe.gates.batchwise import batchwise_choice
from tf_moe.gates.linear import LinearGate
from tf_moe.gates.routing import Routing, routing_of_gates
from tf_moe.losses import threshold_loss
from tf_moe.ops.masks import mask_rows


@keras.saving.register_keras_serializable(package="tf_moe")
class StrictlyBalanced(LinearGate):
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
        z_loss_weight: Weight of the router z-loss, `tf_moe.losses.z_loss`. Default 0.0.
        **kwargs: `num_gates`, see `Gate`, and arguments of `keras.layers.Layer`. Several gates share the thresholds, as
            experts choose among the tokens of all gates.

    Raises:
        ValueError: If not 1 <= k <= num_experts, or `z_loss_weight` is negative.

    Example:

    >>> gate = tf_moe.gates.StrictlyBalanced(num_experts=4, k=2)
    >>> gate(tf.random.normal([8, 16]), training=True).load
    <tf.Tensor: shape=(4,), dtype=float32, numpy=array([4., 4., 4., 4.], dtype=float32)>

    Reference: appendix F of Shazeer et al. (2017).
    """

    def build(self, input_shape):
        super().build(input_shape)
        start = keras.initializers.Constant(1.0 - self.k / self.num_experts)
        self.thresholds = self.add_weight(shape=(self.num_experts,), initializer=start, name="thresholds")

    def call(self, inputs, mask=None, training=False, gate_id=None) -> Routing:
        logits = self.logits(inputs, gate_id)
        scores = tf.nn.softmax(logits, axis=-1)
        thresholds = self.thresholds / self.num_experts
        loss = self.weighted_z_loss(logits, mask, training)
        if training:
            chosen = batchwise_choice(scores, self.k, mask)
            # The gate learns from the task, the thresholds from this: so the scores are held still here.
            loss += threshold_loss(tf.stop_gradient(scores), thresholds, chosen, mask)
        else:
            chosen = scores > thresholds
        if self.k > 1:
            # S M over its sum is the softmax of what is chosen, which is right where all of S that is chosen is 0.
            scores = tf.nn.softmax(tf.where(chosen, logits, logits.dtype.min), axis=-1)
        gates = mask_rows(scores * tf.cast(chosen, tf.float32), mask)
        return routing_of_gates(gates, loss)
