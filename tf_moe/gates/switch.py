"""Switch gating: one expert for each token, and a loss that balances them."""

import keras
import tensorflow as tf

from tf_moe import checks
from tf_moe.gates.choice import choose
from tf_moe.gates.linear import LinearGate
from tf_moe.gates.numbers import check_fixed
from tf_moe.gates.routing import Routing, routing_of_choices
from tf_moe.initializers import Initializer
from tf_moe.losses import switch_loss
from tf_moe.ops.masks import mask_rows
from tf_moe.ops.ties import code_tokens


@keras.saving.register_keras_serializable(package="tf_moe")
class Switch(LinearGate):
    """Switch gating: each token goes to the expert with the highest probability, which is its weight.

    ```
    p(x) = softmax(x' W_g),   x' = x * uniform(1 - jitter, 1 + jitter) in training
    G(x)_i = p(x)_i  where it is highest, else 0
    loss = aux_loss_weight * E * sum_i f_i P_i
    ```

    f_i is the share of the tokens that go to expert i and P_i the mean of p(x)_i, over the unmasked tokens of the whole
    batch. The loss is in `Routing.loss`, which a `SparseMoE` adds; of its own balance losses it has none with this gate
    unless it is given weights for them. The paper drops tokens beyond a `capacity_factor` of 1.0 to 2.0; the layer's
    default is to drop none.

    Weights: `kernel` W_g, `(D, E)`. Ties are spread over the experts, so the untrained gate is balanced.

    Args:
        num_experts: Number of experts E.
        k: 1, or None for it: a token has one expert.
        kernel_initializer: Initializer of W_g. Default "zeros"; the paper's is
            `keras.initializers.VarianceScaling(0.1, "fan_in", "truncated_normal")`.
        seed: Integer seed of the jitter, or None.
        aux_loss_weight: Weight alpha of the balance loss. Default 0.01, the paper's.
        jitter: Largest share by which a feature is changed before the gate in training, 0 to 1. Default 0.01, the
            paper's; 0.0 for none.
        z_loss_weight: Weight of the router z-loss, `tf_moe.losses.z_loss`. Default 0.0.
        **kwargs: `num_gates`, see `Gate`, and arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If k is neither 1 nor None, or another argument is out of range.

    Example:

    >>> layer = tf_moe.layers.SparseMoE(8, 32, k=1, gate="switch")
    >>> layer.route(tf.random.normal([5, 16])).expert_index.shape
    TensorShape([5, 1])

    Reference: sections 2.1, 2.2 and 2.4 of Fedus et al. (2021), Switch Transformers; the jitter is in appendix C.
    """

    balance_weight = 0.0
    chooses_k = False
    aux_loss_weight = checks.Checked(checks.at_least_zero)
    jitter = checks.Checked(checks.zero_to_below_one)

    def __init__(
        self,
        num_experts: int,
        k: int | None = None,
        kernel_initializer: Initializer = "zeros",
        seed: int | None = None,
        aux_loss_weight: float = 0.01,
        jitter: float = 0.01,
        z_loss_weight: float = 0.0,
        **kwargs,
    ):
        k = check_fixed(k, 1, "with Switch gating a token has one expert")
        super().__init__(num_experts, k, kernel_initializer, seed, z_loss_weight, **kwargs)
        self.aux_loss_weight = aux_loss_weight
        self.jitter = jitter

    def call(self, inputs, mask=None, training=False, gate_id=None) -> Routing:
        logits = self.logits(self._jittered(inputs) if training and self.jitter else inputs, gate_id)
        index, weights = choose(logits, code_tokens(inputs), self.k)
        routing = routing_of_choices(index, mask_rows(weights, mask), self.num_experts)
        loss = self.weighted_z_loss(logits, mask, training)
        if training and self.aux_loss_weight:
            loss += self.aux_loss_weight * switch_loss(routing.load, tf.nn.softmax(logits, axis=-1), mask)
        return routing._replace(loss=loss)

    def _jittered(self, inputs):
        return inputs * (1.0 + self.jitter * (2.0 * self.uniform_noise(tf.shape(inputs)) - 1.0))

    def get_config(self):
        return {**super().get_config(), "aux_loss_weight": self.aux_loss_weight, "jitter": self.jitter}
