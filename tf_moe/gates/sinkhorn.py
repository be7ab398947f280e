"""Sinkhorn gating: in training tokens are assigned by scores that are balanced over the batch."""

import keras
import tensorflow as tf

from tf_moe import checks
from tf_moe.gates.linear import LinearGate
from tf_moe.gates.routing import Routing, routing_of_choices
from tf_moe.initializers import Initializer
from tf_moe.ops.chosen import read_at
from tf_moe.ops.masks import mask_rows
from tf_moe.ops.ties import code_tokens, top_k_spread

# Stands for the logarithm of zero: adding to it stays finite.
_LOG_ZERO = -1e37


@keras.saving.register_keras_serializable(package="tf_moe")
class Sinkhorn(LinearGate):
    """Sinkhorn gating: a balanced assignment in training, the k highest logits at evaluation.

    ```
    training:   choose the k highest of x W_g + b; by Sinkhorn's iteration over the batch, b and one a for each token
                make exp(x W_g + a + b) sum to the same for all experts, and to the same for all tokens
    evaluation: choose the k highest of x W_g
    G(x)_i = sigmoid(x W_g)_i  where i is chosen, else 0
    ```

    It is the soft plan that is balanced, so that loads are only nearly equal, the nearer the more logits differ. A
    balance loss is not needed, and a `SparseMoE` with this gate has none unless it is given weights for them. The
    choice has no gradient, and the gate learns by the weights, which are those of BASE: plain scores, never the
    balanced ones, so that they mean the same at evaluation. They are not normalised. A token's experts depend on the
    rest of the batch in training alone.

    Weights: `kernel` W_g, `(D, E)`. Ties are spread over the experts, so the untrained gate is balanced.

    Args:
        num_experts: Number of experts E.
        k: Number of experts for a token; 1 in the papers.
        kernel_initializer: Initializer of W_g. Default "zeros".
        seed: Not used, since nothing is drawn; there as in the other gates.
        iterations: Sinkhorn's iterations in training. Default 10. More balance better where logits differ by much.
        z_loss_weight: Weight of the router z-loss, `tf_moe.losses.z_loss`. Default 0.0.
        **kwargs: `num_gates`, see `Gate`, and arguments of `keras.layers.Layer`. The tokens of all gates are balanced
            together.

    Raises:
        ValueError: If not 1 <= k <= num_experts, or another argument is out of range.

    Example:

    >>> gate = tf_moe.gates.Sinkhorn(num_experts=4, k=1, kernel_initializer="glorot_uniform")
    >>> load = gate(tf.random.normal([8000, 16]), training=True).load
    >>> bool(tf.reduce_max(load) < 1.2 * 2000)
    True

    Reference: the balanced choice is that of S-BASE in Clark et al. (2022), Unified Scaling Laws for Routed Language
    Models; weights, and the plain choice at evaluation, are those of Lewis et al. (2021), BASE Layers, section 3.
    """

    balance_weight = 0.0
    iterations = checks.Checked(checks.integer)

    def __init__(
        self,
        num_experts: int,
        k: int,
        kernel_initializer: Initializer = "zeros",
        seed: int | None = None,
        iterations: int = 10,
        z_loss_weight: float = 0.0,
        **kwargs,
    ):
        super().__init__(num_experts, k, kernel_initializer, seed, z_loss_weight, **kwargs)
        self.iterations = iterations

    def call(self, inputs, mask=None, training=False, gate_id=None) -> Routing:
        logits = self.logits(inputs, gate_id)
        scores = logits + balance(logits, self.iterations, mask) if training else logits
        index = top_k_spread(scores, code_tokens(inputs), self.k)
        weights = mask_rows(tf.math.sigmoid(read_at(logits, index)), mask)
        return routing_of_choices(index, weights, self.num_experts, self.weighted_z_loss(logits, mask, training))

    def get_config(self):
        return {**super().get_config(), "iterations": self.iterations}


def balance(logits: tf.Tensor, iterations: int, mask: tf.Tensor | None = None) -> tf.Tensor:
    """What to add to each expert's logits so that the tokens' softmaxes over them give every expert the same in all.

    Sinkhorn's iteration in the log domain, which huge logits do not overflow: the rows of exp(logits) are scaled to
    equal sums, then the columns, and so on. It ends with the columns; no token's choice depends on its row's scale.

    Args:
        logits: Float32 `(T, E)`.
        iterations: How often both are scaled.
        mask: Optional bool `(T,)`; tokens where it is False take no part.

    Returns:
        Float32 `(E,)`, without gradient.
    """
    logits = tf.stop_gradient(logits)

    def scale_both(n, offset):
        row = tf.reduce_logsumexp(logits + offset, axis=1, keepdims=True)
        scaled = logits - row
        if mask is not None:
            scaled = tf.where(tf.expand_dims(mask, 1), scaled, _LOG_ZERO)
        return n + 1, -tf.reduce_logsumexp(scaled, axis=0)

    start = (tf.constant(0), tf.zeros([logits.shape[-1]]))
    return tf.while_loop(lambda n, _: n < iterations, scale_both, start)[1]
