"""Two-level noisy top-k gating: first among groups of experts, then among the experts of each chosen group."""

import keras
import tensorflow as tf

from tf_moe import checks
from tf_moe.gates.choice import NORMALIZE, choose, choose_by_kernels, choose_noisy_by_token
from tf_moe.gates.gate import Gate
from tf_moe.gates.numbers import check_levels
from tf_moe.gates.routing import Routing, count_by_expert
from tf_moe.initializers import Initializer, PerExpert
from tf_moe.losses import z_loss
from tf_moe.ops.by_group import matmul_by_group
from tf_moe.ops.sums import sum_by_group, sum_rows_by_group
from tf_moe.ops.ties import code_tokens


@keras.saving.register_keras_serializable(package="tf_moe")
class Hierarchical(Gate):
    """Noisy top-k gating on two levels: k[0] of a groups, and k[1] of the b experts in each chosen group.

    An expert's gate value is the product of the two levels'; experts are numbered group * b + expert. Only the gates of
    the chosen groups are computed, so a token costs a + k[0] * b logits instead of a * b.

    Weights: `kernel` and `noise_kernel`, `(D, a)`, of the first level; `group_kernel` and `group_noise_kernel`,
    `(a, D, b)`, of the second. All start at zero.

    Args:
        num_experts: Pair (a, b), number of groups and of experts in each.
        k: Pair, number of groups chosen and of experts in each of them.
        kernel_initializer: Initializer of both levels' kernels. Default "zeros".
        noise_kernel_initializer: Initializer of both levels' noise kernels. Default "zeros".
        seed: Integer seed of the noise, or None.
        noisy: Whether there is noise in training. Default True. Without it there are no noise kernels, and the load is
            the number of tokens, which has no gradient: only the importance loss balances then.
        z_loss_weight: Weight of the router z-loss, `tf_moe.losses.z_loss`: the sum of both levels', each of the logits
            without noise, the second level's a mean over the chosen groups. Default 0.0.
        normalize: Over which experts the weights of each level are a softmax: "chosen", the paper's and the default; or
            "all", all groups, and all experts of a chosen group.
        **kwargs: `num_gates`, see `Gate`, and arguments of `keras.layers.Layer`. The second level's kernels of several
            gates are `(num_gates * a, D, b)`.

    Raises:
        ValueError: If either is no pair, or a k or another argument is out of range.

    Example:

    >>> gate = tf_moe.gates.Hierarchical(num_experts=(4, 8), k=(2, 2))
    >>> gate(tf.random.normal([5, 16])).expert_index.shape
    TensorShape([5, 4])

    Reference: appendix B of Shazeer et al. (2017).
    """

    can_be_several = True
    z_loss_weight = checks.Checked(checks.at_least_zero)
    normalize = checks.Checked(checks.one_of, NORMALIZE)

    def __init__(
        self,
        num_experts: tuple[int, int],
        k: tuple[int, int],
        kernel_initializer: Initializer = "zeros",
        noise_kernel_initializer: Initializer = "zeros",
        seed: int | None = None,
        noisy: bool = True,
        z_loss_weight: float = 0.0,
        normalize: str = "chosen",
        **kwargs,
    ):
        super().__init__(*check_levels(num_experts, k), seed=seed, **kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.noise_kernel_initializer = keras.initializers.get(noise_kernel_initializer)
        self.noisy = checks.boolean("noisy", noisy)
        self.z_loss_weight = z_loss_weight
        self.normalize = normalize

    def build(self, input_shape):
        width, (groups, experts) = input_shape[-1], self.num_experts
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: width})
        initializers = {"kernel": self.kernel_initializer}
        if self.noisy:
            initializers["noise_kernel"] = self.noise_kernel_initializer
        for name, initializer in initializers.items():
            first = self.add_kernel(name, (width, groups), initializer)
            second = self.add_weight(
                shape=((self.num_gates or 1) * groups, width, experts),
                initializer=PerExpert(initializer, 1),
                name=f"group_{name}",
            )
            setattr(self, name, first)
            setattr(self, f"group_{name}", second)

    def call(self, inputs, mask=None, training=False, gate_id=None) -> Routing:
        noisy = training and self.noisy
        group_logits, group, group_weights, group_load = self._choose_groups(inputs, mask, noisy, gate_id)
        expert_logits, expert, expert_weights, expert_load = self._choose_experts(
            inputs, group, group_weights, noisy, gate_id
        )
        tokens = tf.shape(inputs)[0]
        choices = self.k[0] * self.k[1]
        index = tf.expand_dims(group * self.num_experts[1], -1) + expert  # (T, k0, k1)
        index = tf.reshape(index, [tokens, choices])
        weights = tf.reshape(tf.expand_dims(group_weights, -1) * expert_weights, [tokens, choices])
        total = self.num_experts[0] * self.num_experts[1]
        if noisy:
            # Load_primary(i) * Load_i(j) / |X(i)|: the sum of the second level's loads alone would give the first
            # level's gate no gradient.
            sizes = count_by_expert(group, group_weights, self.num_experts[0])
            share = tf.math.divide_no_nan(expert_load, tf.expand_dims(sizes, -1))
            load = tf.reshape(tf.expand_dims(group_load, -1) * share, [total])
        else:
            load = count_by_expert(index, weights, total)
        loss = 0.0
        if training and self.z_loss_weight:
            chosen = tf.reshape(group_weights > 0, [tokens * self.k[0]])
            loss = self.z_loss_weight * (z_loss(group_logits, mask) + z_loss(expert_logits, chosen))
        return Routing(index, weights, None, sum_by_group(weights, index, total), load, loss)

    def _choose_groups(self, inputs, mask, noisy, gate_id):
        """First level: clean logits (T, a), groups and weights (T, k0), and with noise the load (a,)."""
        kernels, noise = ([self.kernel, self.noise_kernel], self.new_noise()) if noisy else ([self.kernel], None)
        return choose_by_kernels(inputs, kernels, self.k[0], self.normalize, noise, mask, gate_id)

    def _choose_experts(self, inputs, group, group_weights, noisy, gate_id):
        """Second level: clean logits (T * k0, b), experts and weights (T, k0, k1), and with noise the loads (a, b)."""
        groups, (k0, k1) = self.num_experts[0], self.k
        tokens = tf.shape(inputs)[0]
        group = tf.where(group_weights > 0, group, groups)
        kernel = tf.convert_to_tensor(self.group_kernel)
        if noisy:
            kernel = tf.concat([kernel, tf.convert_to_tensor(self.group_noise_kernel)], axis=-1)
        matrix = group  # of the kernel's, one for each group of each gate
        if gate_id is not None:
            matrix = tf.where(group < groups, tf.expand_dims(gate_id, -1) * groups + group, kernel.shape[0])
        logits = matmul_by_group(inputs, matrix, kernel)  # (T, k0, b or 2b)
        logits = tf.reshape(logits, [tokens * k0, kernel.shape[-1]])

        if noisy:
            clean_logits, noise_logits = tf.split(logits, 2, axis=-1)
            noise = self.noise(tf.shape(clean_logits))
            index, weights, probability = choose_noisy_by_token(clean_logits, noise_logits, noise, k1, self.normalize)
            load = sum_rows_by_group(probability, tf.reshape(group, [tokens * k0]), groups)
        else:
            # Another code than the first level's, or equal tokens' ties would fall together on both levels.
            code = tf.math.floordiv(tf.repeat(code_tokens(inputs), k0), groups)
            clean_logits, load = logits, None
            index, weights = choose(clean_logits, code, k1, self.normalize)
        return clean_logits, tf.reshape(index, [tokens, k0, k1]), tf.reshape(weights, [tokens, k0, k1]), load

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "noise_kernel_initializer": keras.initializers.serialize(self.noise_kernel_initializer),
            "noisy": self.noisy,
            "z_loss_weight": self.z_loss_weight,
            "normalize": self.normalize,
        }
