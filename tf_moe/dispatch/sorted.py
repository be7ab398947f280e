"""The dropless dispatcher: assignments sorted by expert."""

import tensorflow as tf

from tf_moe.dispatch.plan import Plan
from tf_moe.ops.groups import group_by
from tf_moe.ops.xla import compiled_by_xla


def dispatch_sorted(expert_index: tf.Tensor, combine_weights: tf.Tensor, num_experts: int) -> Plan:
    """Every assignment gets a row: first all of expert 0, then all of expert 1, and so on, in the order of the tokens.

    Args:
        expert_index: Int32 `(T, K)`.
        combine_weights: `(T, K)`; an assignment with weight zero gets no row.
        num_experts: Number of experts E.

    Returns:
        A plan with as many rows as there are assignments. Under XLA, where that cannot vary, T * K rows.
    """
    assigned = combine_weights > 0
    index = tf.reshape(tf.where(assigned, expert_index, num_experts), [-1])
    groups = group_by(index, num_experts)
    total = tf.reduce_sum(groups.counts)
    rows = tf.range(tf.size(index))
    assignment = tf.where(rows < total, groups.order, -1) if compiled_by_xla() else groups.order[:total]
    slot = tf.where(assigned, tf.reshape(groups.place, tf.shape(expert_index)), -1)
    return Plan(assignment, slot, groups.counts, dropped=tf.constant(0))
