"""The base class of gates with one logit for each expert."""

import keras
import tensorflow as tf

from tf_moe import checks
from tf_moe.gates.gate import Gate
from tf_moe.gates.numbers import check_choice
from tf_moe.gates.several import products
from tf_moe.initializers import Initializer
from tf_moe.losses import z_loss


class LinearGate(Gate):
    """Base class of the gates whose logits are x W_g: it has W_g, for one gate or several, and the router z-loss.

    A subclass implements `call(inputs, mask, training, gate_id)` with `logits` and `weighted_z_loss`; `Gate` says
    what it needs to be loaded.

    Weights: `kernel` W_g, `(D, E)`; with `num_gates`, `(G, D, E)`.

    Args:
        num_experts: Number of experts E.
        k: Number of experts for a token, 1 to E.
        kernel_initializer: Initializer of W_g. Default "zeros".
        seed: Integer seed of what the gate draws, or None.
        z_loss_weight: Weight in `Routing.loss` of `tf_moe.losses.z_loss` of the logits, in training. Default 0.0.
        **kwargs: `num_gates`, see `Gate`, and arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If not 1 <= k <= num_experts, or `z_loss_weight` is negative.

    Example:

    ```python
    @keras.saving.register_keras_serializable(package="mine")
    class BySigmoid(tf_moe.gates.LinearGate):
        def call(self, inputs, mask=None, training=False, gate_id=None):
            logits = self.logits(inputs, gate_id)
            weights, index = tf.math.top_k(tf.sigmoid(logits), self.k)
            if mask is not None:
                weights = tf.where(mask[:, None], weights, 0.0)
            gates = tf.reduce_sum(tf.one_hot(index, self.num_experts) * weights[..., None], axis=1)
            load = tf.reduce_sum(tf.cast(gates > 0, tf.float32), axis=0)
            loss = self.weighted_z_loss(logits, mask, training)
            return tf_moe.gates.Routing(index, weights, None, tf.reduce_sum(gates, axis=0), load, loss)

    layer = tf_moe.layers.SparseMoE(4, expert_hidden=16, k=2, gate=BySigmoid(4, 2, "glorot_uniform", num_gates=2))
    outputs = layer(tf.random.normal([5, 8]), gate_id=[0, 1, 1, 0, 1])
    ```
    """

    can_be_several = True
    z_loss_weight = checks.Checked(checks.at_least_zero)

    def __init__(
        self,
        num_experts: int,
        k: int,
        kernel_initializer: Initializer = "zeros",
        seed: int | None = None,
        z_loss_weight: float = 0.0,
        **kwargs,
    ):
        super().__init__(*check_choice(num_experts, k), seed=seed, **kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.z_loss_weight = z_loss_weight

    def build(self, input_shape):
        shape = (input_shape[-1], self.num_experts)
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: input_shape[-1]})
        self.kernel = self.add_kernel("kernel", shape, self.kernel_initializer)

    def logits(self, inputs: tf.Tensor, gate_id: tf.Tensor | None = None) -> tf.Tensor:
        """The product x W_g, `(T, E)`, where there are several gates with the kernel of each token's own."""
        return products(inputs, [self.kernel], gate_id)[0]

    def weighted_z_loss(self, logits: tf.Tensor, mask: tf.Tensor | None, training: bool) -> tf.Tensor | float:
        """The z-loss times its weight; 0 at evaluation, or without a weight."""
        return self.z_loss_weight * z_loss(logits, mask) if training and self.z_loss_weight else 0.0

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "z_loss_weight": self.z_loss_weight,
        }
