"""Trading time for memory: activations computed again in the backward pass instead of kept."""

from collections.abc import Callable

import tensorflow as tf

from tf_moe.ops.gradients import gradients_of
from tf_moe.ops.xla import compiled_by_xla, not_before


def recomputed(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """The same `function(x, *weights)`, but it keeps only its arguments for the backward pass.

    Unlike `tf.recompute_grad` it copies no weights: only x is tied to the incoming gradient. Under XLA on the CPU it
    saves nothing, since that merges the two computations.

    Args:
        function: Deterministic, of tensors alone (no variables): `function(x, *weights)` -> tensor.

    Reference: appendix D of Shazeer et al. (2017); section 3.1, where it allows larger batches.
    """

    @tf.custom_gradient
    def forward(x, *weights):
        under_xla = compiled_by_xla()

        def gradient(dy):
            return gradients_of(function, [not_before(x, dy, under_xla), *weights], dy)

        return function(x, *weights), gradient

    return forward
