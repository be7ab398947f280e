"""Which dispatcher a layer needs: on a mesh the sharded one, with a capacity the one of static shapes."""

import tensorflow as tf

from tf_moe.dispatch.capacity import capacity_of, dispatch_capacity
from tf_moe.dispatch.plan import Plan
from tf_moe.dispatch.sharded import ShardedPlan, dispatch_sharded
from tf_moe.dispatch.sorted import dispatch_sorted
from tf_moe.mesh.shards import Shards


def make_plan(
    tokens: tf.Tensor,
    expert_index: tf.Tensor,
    combine_weights: tf.Tensor,
    num_experts: int,
    k: int,
    *,
    capacity_factor: float | None,
    drop_by: str,
    takes_block: bool,
    shards: Shards | None,
) -> Plan | ShardedPlan:
    """The plan for what a gate chose.

    Args:
        tokens: `(T, D)`, of which only the number matters: it may be static where that of the gate's choices is not.
        expert_index: Integers `(T, K)`.
        combine_weights: `(T, K)`, zero where nothing was chosen.
        num_experts: Number of experts, over both levels.
        k: Experts for each token, over both levels. K may be larger, where a gate leaves the number open.
        capacity_factor: See `capacity_of`; None drops nothing.
        drop_by: See `dispatch_capacity`.
        takes_block: Whether the experts can do with rows in blocks, see `dispatch_sorted`.
        shards: The mesh, or None on one device.

    Returns:
        The plan of `dispatch_sharded` on a mesh, else of `dispatch_capacity` where there is a capacity, else of
        `dispatch_sorted`.
    """
    expert_index = tf.cast(expert_index, tf.int32)  # a gate of one's own may have tf.argmax's int64
    if capacity_factor is None:
        capacity = None
    else:
        size = tf.shape(tokens)[0] if tokens.shape[0] is None else tokens.shape[0]
        capacity = capacity_of(size if shards is None else shards.share(size), num_experts, k, capacity_factor)
    if shards is not None:
        return dispatch_sharded(expert_index, combine_weights, num_experts, shards, capacity, drop_by)
    if capacity is None:
        return dispatch_sorted(expert_index, combine_weights, num_experts, with_block=takes_block)
    return dispatch_capacity(expert_index, combine_weights, num_experts, capacity, drop_by)
