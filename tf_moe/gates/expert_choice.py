"""Expert choice gating: experts choose tokens, in training and at evaluation."""

import keras
import tensorflow as tf

from tf_moe.gates.batchwise import batchwise_choice
from tf_moe.gates.linear import LinearGate
from tf_moe.gates.routing import Routing, routing_of_gates
from tf_moe.ops.masks import mask_rows


@keras.saving.register_keras_serializable(package="tf_moe")
class ExpertChoice(LinearGate):
    """Expert choice gating: every expert takes the tokens of the batch with the highest scores for it.

    ```
    S(x) = softmax(x W_g)
    G(x)_i = S(x)_i  where x is among the m = k T / E highest of S_i over the T unmasked tokens, else 0
    ```

    m is rounded, and at least 1. So all experts receive the same number of tokens, and k is the mean number of experts
    that a token meets; one token may meet more, or none, and then its output is zero. No balance loss is needed, and a
    `SparseMoE` with this gate has none unless it is given weights for them. A `capacity_factor` of 1.0 drops nothing on
    one device; on a mesh, where a capacity is for each device's tokens, it may.

    **A token's answer depends on the rest of the batch, at evaluation too**: on the other sequences, on how many there
    are, and within a sequence on the tokens that come after it. A language model is therefore not causal with this
    gate: its perplexity is too good to be true, and generating one token at a time gives other answers. It suits
    encoders and images; for a causal model take `StrictlyBalanced`, which chooses like this in training alone, or a
    gate that chooses for each token.

    Weights: `kernel` W_g, `(D, E)`, zeros at first, when ties make every token meet k experts.

    Args:
        num_experts: Number of experts E.
        k: Mean number of experts for a token, the paper's capacity factor c.
        kernel_initializer: Initializer of W_g. Default "zeros".
        seed: Not used, since nothing is drawn; there as in the other gates.
        z_loss_weight: Weight of the router z-loss, `tf_moe.losses.z_loss`. Default 0.0.
        **kwargs: `num_gates`, see `Gate`, and arguments of `keras.layers.Layer`. Experts choose among the tokens of all
            gates.

    Raises:
        ValueError: If not 1 <= k <= num_experts, or `z_loss_weight` is negative.

    Example:

    >>> gate = tf_moe.gates.ExpertChoice(num_experts=4, k=2)
    >>> gate(tf.random.normal([8, 16])).load
    <tf.Tensor: shape=(4,), dtype=float32, numpy=array([4., 4., 4., 4.], dtype=float32)>

    Reference: section 3 of Zhou et al. (2022), Mixture-of-Experts with Expert Choice Routing.
    """

    balance_weight = 0.0

    def call(self, inputs, mask=None, training=False, gate_id=None) -> Routing:
        logits = self.logits(inputs, gate_id)
        scores = tf.nn.softmax(logits, axis=-1)
        chosen = batchwise_choice(scores, self.k, mask)
        gates = mask_rows(scores * tf.cast(chosen, tf.float32), mask)
        return routing_of_gates(gates, self.weighted_z_loss(logits, mask, training))
