"""Noisy top-k gating, the paper's gate."""

import keras

from tf_moe import checks
from tf_moe.gates.choice import NORMALIZE, choose_by_kernels
from tf_moe.gates.linear import LinearGate
from tf_moe.gates.routing import Routing, count_by_expert
from tf_moe.initializers import Initializer
from tf_moe.ops.sums import sum_by_group


@keras.saving.register_keras_serializable(package="tf_moe")
class NoisyTopK(LinearGate):
    """Noisy top-k gating: each token goes to the k experts with the highest logits, with noise in training.

    ```
    H(x) = x W_g + normal() * softplus(x W_noise)
    G(x) = softmax(KeepTopK(H(x), k))
    ```

    Weights: `kernel` W_g and `noise_kernel` W_noise, `(D, E)`. Both start at zero, so that the noise alone decides at
    first and the load starts nearly equal. At evaluation there is no noise, and ties are spread over the experts.

    Args:
        num_experts: Number of experts E.
        k: Number of experts chosen for a token. With 1, its weight is the probability among all experts, so that the
            gate still learns.
        kernel_initializer: Initializer of W_g. Default "zeros".
        noise_kernel_initializer: Initializer of W_noise. Default "zeros".
        seed: Integer seed of the noise, or None.
        noisy: Whether there is noise in training. Default True. Without it there is no `noise_kernel`, and the load is
            the number of tokens, which has no gradient: only the importance loss balances then.
        z_loss_weight: Weight of the router z-loss of the logits without noise, `tf_moe.losses.z_loss`. Default 0.0.
        normalize: Over which experts a token's weights are a softmax: "chosen", the paper's and the default, where they
            sum to 1; or "all", where they are the probabilities among all experts, so that they are smaller where the
            gate is less sure, and the logits that were not chosen learn too.
        **kwargs: `num_gates`, see `Gate`, and arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If not 1 <= k <= num_experts, or another argument is out of range.

    Example:

    >>> routing = tf_moe.gates.NoisyTopK(num_experts=8, k=2)(tf.random.normal([5, 16]))
    >>> routing.expert_index.shape, routing.load.shape
    (TensorShape([5, 2]), TensorShape([8]))

    Reference: section 2.1 and appendix A of Shazeer et al. (2017).
    """

    normalize = checks.Checked(checks.one_of, NORMALIZE)

    def __init__(
        self,
        num_experts: int,
        k: int,
        kernel_initializer: Initializer = "zeros",
        noise_kernel_initializer: Initializer = "zeros",
        seed: int | None = None,
        noisy: bool = True,
        z_loss_weight: float = 0.0,
        normalize: str = "chosen",
        **kwargs,
    ):
        super().__init__(num_experts, k, kernel_initializer, seed, z_loss_weight, **kwargs)
        self.noise_kernel_initializer = keras.initializers.get(noise_kernel_initializer)
        self.noisy = checks.boolean("noisy", noisy)
        self.normalize = normalize

    def build(self, input_shape):
        super().build(input_shape)
        if self.noisy:
            shape = (input_shape[-1], self.num_experts)
            self.noise_kernel = self.add_kernel("noise_kernel", shape, self.noise_kernel_initializer)

    def call(self, inputs, mask=None, training=False, gate_id=None) -> Routing:
        kernels, noise = [self.kernel], None
        if training and self.noisy:
            kernels, noise = [self.kernel, self.noise_kernel], self.new_noise()
        clean_logits, index, weights, load = choose_by_kernels(
            inputs, kernels, self.k, self.normalize, noise, mask, gate_id
        )
        if load is None:
            load = count_by_expert(index, weights, self.num_experts)
        loss = self.weighted_z_loss(clean_logits, mask, training)
        return Routing(index, weights, None, sum_by_group(weights, index, self.num_experts), load, loss)

    def get_config(self):
        return {
            **super().get_config(),
            "noise_kernel_initializer": keras.initializers.serialize(self.noise_kernel_initializer),
            "noisy": self.noisy,
            "normalize": self.normalize,
        }
