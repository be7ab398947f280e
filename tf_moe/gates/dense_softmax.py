"""Dense softmax gating: every token goes to every expert. The control that sparse gates are held against."""

import keras
import tensorflow as tf

from tf_moe import checks
from tf_moe.gates.linear import LinearGate
from tf_moe.gates.numbers import check_fixed
from tf_moe.gates.routing import Routing, routing_of_gates
from tf_moe.initializers import Initializer
from tf_moe.ops.masks import mask_rows


@keras.saving.register_keras_serializable(package="tf_moe")
class DenseSoftmax(LinearGate):
    """Dense softmax gating: `G(x) = softmax(x W_g)`, and nothing is left out.

    The classical mixture of experts, E times the arithmetic of one: for comparison with the sparse gates. The load is
    the same for all experts, and a `SparseMoE` with this gate has no balance losses unless it is given weights for
    them. With `num_gates` it is the multi-gate mixture of experts of Ma et al. (2018).

    Weights: `kernel` W_g, `(D, E)`.

    Args:
        num_experts: Number of experts E.
        k: E, or None for it.
        kernel_initializer: Initializer of W_g. Default "zeros", when all experts weigh the same.
        seed: Not used, since nothing is drawn; there as in the other gates.
        z_loss_weight: Weight of the router z-loss, `tf_moe.losses.z_loss`. Default 0.0.
        **kwargs: `num_gates`, see `Gate`, and arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If k is neither `num_experts` nor None, or another argument is out of range.

    Example:

    >>> layer = tf_moe.layers.SparseMoE(8, 32, k=None, gate="dense_softmax")
    >>> layer.k
    8

    Reference: section 2.1 of Shazeer et al. (2017), "softmax gating", after Jordan and Jacobs (1994), Hierarchical
    mixtures of experts and the EM algorithm.
    """

    balance_weight = 0.0
    chooses_k = False

    def __init__(
        self,
        num_experts: int,
        k: int | None = None,
        kernel_initializer: Initializer = "zeros",
        seed: int | None = None,
        z_loss_weight: float = 0.0,
        **kwargs,
    ):
        num_experts = checks.integer("num_experts", num_experts)
        k = check_fixed(k, num_experts, "a dense gate sends every token to every expert")
        super().__init__(num_experts, k, kernel_initializer, seed, z_loss_weight, **kwargs)

    def call(self, inputs, mask=None, training=False, gate_id=None) -> Routing:
        logits = self.logits(inputs, gate_id)
        gates = mask_rows(tf.nn.softmax(logits, axis=-1), mask)
        return routing_of_gates(gates, self.weighted_z_loss(logits, mask, training), keep_all=True)
