"""Noisy top-k gating, the paper's gate."""

import keras
import tensorflow as tf

from tf_moe import checks
from tf_moe.gates.choice import choose, choose_noisy
from tf_moe.gates.gate import Gate, Initializer, check_choice, mask_rows, sum_rows
from tf_moe.gates.routing import Routing, count_by_expert, total_by_expert
from tf_moe.gates.several import products
from tf_moe.ops.ties import code_tokens


@keras.saving.register_keras_serializable(package="tf_moe")
class NoisyTopK(Gate):
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
        **kwargs: `num_gates`, see `Gate`, and arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If not 1 <= k <= num_experts.

    Example:

    >>> routing = tf_moe.gates.NoisyTopK(num_experts=8, k=2)(tf.random.normal([5, 16]))
    >>> routing.expert_index.shape, routing.load.shape
    (TensorShape([5, 2]), TensorShape([8]))

    Reference: section 2.1 and appendix A of Shazeer et al. (2017).
    """

    can_be_several = True

    def __init__(
        self,
        num_experts: int,
        k: int,
        kernel_initializer: Initializer = "zeros",
        noise_kernel_initializer: Initializer = "zeros",
        seed: int | None = None,
        noisy: bool = True,
        **kwargs,
    ):
        super().__init__(*check_choice(num_experts, k), seed=seed, **kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.noise_kernel_initializer = keras.initializers.get(noise_kernel_initializer)
        self.noisy = checks.boolean("noisy", noisy)

    def build(self, input_shape):
        shape = (input_shape[-1], self.num_experts)
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: input_shape[-1]})
        self.kernel = self.add_kernel("kernel", shape, self.kernel_initializer)
        if self.noisy:
            self.noise_kernel = self.add_kernel("noise_kernel", shape, self.noise_kernel_initializer)

    def call(self, inputs, mask=None, training=False, gate_id=None) -> Routing:
        if training and self.noisy:
            clean_logits, noise_logits = products(inputs, [self.kernel, self.noise_kernel], gate_id)
            index, weights, probability = choose_noisy(
                clean_logits, noise_logits, self.noise(tf.shape(clean_logits)), self.k
            )
            weights = mask_rows(weights, mask)
            load = sum_rows(probability, mask)
        else:
            (clean_logits,) = products(inputs, [self.kernel], gate_id)
            index, weights = choose(clean_logits, code_tokens(inputs), self.k)
            weights = mask_rows(weights, mask)
            load = count_by_expert(weights, index, self.num_experts)
        return Routing(index, weights, None, total_by_expert(weights, index, self.num_experts), load)

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "noise_kernel_initializer": keras.initializers.serialize(self.noise_kernel_initializer),
            "noisy": self.noisy,
        }
