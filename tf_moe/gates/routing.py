"""What a gate decides: which experts each token goes to, and with which weights."""

from typing import NamedTuple

import tensorflow as tf

from tf_moe import losses
from tf_moe.mesh.shards import current_shards
from tf_moe.ops.chosen import add_at
from tf_moe.ops.sums import sum_by_group
from tf_moe.ops.xla import compiled_by_xla

# Above this many experts the (T, E) matrix of gate values is not made for inspection.
LARGEST_DENSE = 4096


class Routing(NamedTuple):
    """The decision of a gate for T tokens, K choices each, among E experts. All floats are float32.

    A choice with zero weight is none: it takes no place in any expert. All choices of a masked token are such.

    Attributes:
        expert_index: Int32 `(T, K)`. For two levels a flat index, group * experts_per_group + expert.
        combine_weights: `(T, K)`, 0 or more. What each chosen expert's output is multiplied with.
        gates: `(T, E)`, the same as a matrix, or None. `SparseMoE.route` fills it in up to 4096 experts; nothing in
            a forward pass needs it.
        importance: `(E,)`, sum of the gate values over the tokens.
        load: `(E,)`, the number of tokens; of `NoisyTopK` and `Hierarchical`, in training with noise, the smooth
            estimate of it, which has a gradient.
        loss: Scalar, the gate's own losses in training: the thresholds' of strictly balanced gating, Switch's balance
            loss, the router z-loss; 0 for most.

    Example:

    >>> routing = tf_moe.layers.SparseMoE(num_experts=4, expert_hidden=16, k=2).route(tf.random.normal([5, 8]))
    >>> routing.expert_index.shape, routing.gates.shape, int(tf.reduce_sum(routing.load))
    (TensorShape([5, 2]), TensorShape([5, 4]), 10)
    """

    expert_index: tf.Tensor
    combine_weights: tf.Tensor
    gates: tf.Tensor | None
    importance: tf.Tensor
    load: tf.Tensor
    loss: tf.Tensor | float = 0.0


def routing_of_choices(
    expert_index: tf.Tensor, combine_weights: tf.Tensor, num_experts: int, loss: tf.Tensor | float = 0.0
) -> Routing:
    """The `Routing` of K choices for each token, experts and weights `(T, K)`; the load is their number."""
    importance = sum_by_group(combine_weights, expert_index, num_experts)
    load = count_by_expert(expert_index, combine_weights, num_experts)
    return Routing(expert_index, combine_weights, None, importance, load, loss)


def routing_of_gates(gates: tf.Tensor, loss: tf.Tensor | float = 0.0, keep_all: bool = False) -> Routing:
    """The `Routing` of a matrix of gate values `(T, E)`, where each token may have another number of experts.

    K is the most that a token has in this step; E with `keep_all`, or where shapes must be static.

    Args:
        gates: `(T, E)`, zero where an expert is not chosen.
        loss: The gate's own losses.
        keep_all: Whether every expert is a choice of every token, in order; those with zero weight are none.
    """
    load = tf.reduce_sum(tf.cast(tf.stop_gradient(gates) > 0, tf.float32), axis=0)
    if keep_all or compiled_by_xla() or current_shards():
        index, weights = tf.zeros_like(gates, tf.int32) + tf.expand_dims(tf.range(gates.shape[-1]), 0), gates
    else:
        most = tf.reduce_max(tf.math.count_nonzero(gates, axis=-1, dtype=tf.int32), axis=0)
        weights, index = tf.math.top_k(gates, tf.maximum(1, most))
    return Routing(index, weights, None, losses.importance(gates), load, loss)


def count_by_expert(expert_index: tf.Tensor, combine_weights: tf.Tensor, num_experts: int) -> tf.Tensor:
    """Number of assignments of each expert, float32 `(E,)`, without gradient."""
    assigned = tf.cast(tf.stop_gradient(combine_weights) > 0, tf.float32)
    return sum_by_group(assigned, expert_index, num_experts)


def dense_gates(routing: Routing, num_experts: int) -> tf.Tensor | None:
    """The combine weights as a matrix `(T, E)`; None above 4096 experts."""
    if num_experts > LARGEST_DENSE:
        return None
    return add_at(routing.combine_weights, routing.expert_index, num_experts)
