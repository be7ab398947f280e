"""Gating balanced by a bias alone, without a loss."""

import keras
import tensorflow as tf

from tf_moe import checks
from tf_moe.gates.linear import LinearGate
from tf_moe.gates.routing import Routing, routing_of_choices
from tf_moe.initializers import Initializer
from tf_moe.ops.chosen import read_at
from tf_moe.ops.masks import mask_rows
from tf_moe.ops.ties import code_tokens, top_k_spread


@keras.saving.register_keras_serializable(package="tf_moe")
class BiasBalanced(LinearGate):
    """Gating by sigmoid scores, balanced without a loss: experts that had too few tokens get a bias in the choice.

    ```
    s(x) = sigmoid(x W_g)
    M(x) = the k experts with the highest s(x)_i + bias_i
    G(x)_i = s(x)_i M_i / sum_j s(x)_j M_j
    after each training step: bias_i += bias_rate * sign(mean load - load_i)
    ```

    The load counts the unmasked assignments of the whole batch, over all devices of a mesh and all replicas of
    `tf.distribute`'s strategies. So the experts are balanced without a gradient that competes with the task's: a
    `SparseMoE` with this gate has no balance losses unless it is given weights for them, and none to tune.

    Weights: `kernel` W_g `(D, E)`, and `bias` `(E,)`, which is not trainable: no optimizer and no gradient touches it.
    A call with `training=True` moves it, as in `keras.layers.BatchNormalization`; `SparseMoE.route` with it too.
    Evaluation leaves it alone, and so does a gate that is not `trainable`.

    Args:
        num_experts: Number of experts E.
        k: Number of experts chosen for a token. With 1, G is s times M, or the gate would learn nothing.
        kernel_initializer: Initializer of W_g. Default "glorot_uniform". Nothing is drawn here that would tell tokens
            apart: from "zeros" all scores are equal at first, ties are spread over the experts, and as soon as the bias
            differs all tokens go to those where it is highest, until W_g has learned.
        seed: Not used, since nothing is drawn; there as in the other gates.
        bias_rate: How far the bias moves in a step, 0 or more. Default 0.001, the paper's. Scores are between 0 and 1.
        z_loss_weight: Weight of the router z-loss, `tf_moe.losses.z_loss`. Default 0.0.
        **kwargs: `num_gates`, see `Gate`, and arguments of `keras.layers.Layer`. Several gates share the bias.

    Raises:
        ValueError: If not 1 <= k <= num_experts, or `bias_rate` or `z_loss_weight` is negative.

    Example:

    >>> gate = tf_moe.gates.BiasBalanced(num_experts=4, k=1, bias_rate=0.5)
    >>> float(tf.reduce_max(gate(tf.ones([8, 16]), training=True).load))  # equal tokens go to one expert
    8.0
    >>> tf.sort(gate.bias.value).numpy()  # whose bias is lower now
    array([-0.5,  0.5,  0.5,  0.5], dtype=float32)

    Reference: Wang et al. (2024), Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts
    (https://arxiv.org/abs/2408.15664); with weights that sum to 1 as in DeepSeek-AI (2024), DeepSeek-V3, section 2.1.2.
    """

    balance_weight = 0.0
    bias_rate = checks.Checked(checks.at_least_zero)

    def __init__(
        self,
        num_experts: int,
        k: int,
        kernel_initializer: Initializer = "glorot_uniform",
        seed: int | None = None,
        bias_rate: float = 0.001,
        z_loss_weight: float = 0.0,
        **kwargs,
    ):
        super().__init__(num_experts, k, kernel_initializer, seed, z_loss_weight, **kwargs)
        self.bias_rate = bias_rate

    def build(self, input_shape):
        super().build(input_shape)
        self.bias = self.add_weight(
            shape=(self.num_experts,),
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",  # all replicas compute the same
            name="bias",
        )

    def call(self, inputs, mask=None, training=False, gate_id=None) -> Routing:
        logits = self.logits(inputs, gate_id)
        index = top_k_spread(tf.sigmoid(logits) + self.bias, code_tokens(inputs), self.k)
        weights = mask_rows(_weights(read_at(logits, index)), mask)
        routing = routing_of_choices(index, weights, self.num_experts, self.weighted_z_loss(logits, mask, training))
        if training and self.trainable:
            self._move_bias(_over_replicas(routing.load))
        return routing

    def _move_bias(self, load: tf.Tensor) -> None:
        # Both sides of mean - load times E: whole numbers, whose difference is zero where it should be.
        too_few = tf.sign(tf.reduce_sum(load) - self.num_experts * load)
        self.bias.assign_add(self.bias_rate * too_few)

    def get_config(self):
        return {**super().get_config(), "bias_rate": self.bias_rate}


def _weights(logits: tf.Tensor) -> tf.Tensor:
    """Sigmoids of the chosen logits `(T, k)` over their sum; for k = 1 the sigmoid alone."""
    if logits.shape[-1] == 1:
        return tf.sigmoid(logits)
    # s / sum(s) is the softmax of log s, which is no 0 / 0 where all scores are too small for float32.
    return tf.nn.softmax(tf.math.log_sigmoid(logits), axis=-1)


def _over_replicas(load: tf.Tensor) -> tf.Tensor:
    """The sum of the loads of all replicas of a strategy of tf.distribute."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return load
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, load)
