"""The dropless dispatcher: assignments arranged by expert."""

import tensorflow as tf

from tf_moe.dispatch.plan import Plan
from tf_moe.ops.buffer_layout import make_buffer_layout


def dispatch_sorted(
    expert_index: tf.Tensor, combine_weights: tf.Tensor, num_experts: int, with_block: bool = False
) -> Plan:
    """Every assignment gets a row: first all of expert 0, then all of expert 1, and so on, in the order of the tokens.

    Args:
        expert_index: Int32 `(T, K)`.
        combine_weights: `(T, K)`; an assignment with weight zero gets no row.
        num_experts: Number of experts E.
        with_block: Whether the first assignments of all experts come first, in as many places for each as is fastest
            with these loads, and then what the others have beyond them (`tf_moe.ops.buffer_layout.BufferLayout`).

    Returns:
        A plan with as many rows as there are assignments, and the empty places of the block. Under XLA, where that
        cannot vary, T * K rows and no block.

    Example:

    >>> index, weights = tf.constant([[1, 0], [1, 2]]), tf.constant([[0.75, 0.25], [0.5, 0.5]])
    >>> plan = tf_moe.dispatch.dispatch_sorted(index, weights, num_experts=3)
    >>> plan.counts.numpy(), plan.assignment.numpy()
    (array([1, 2, 1], dtype=int32), array([1, 0, 2, 3], dtype=int32))
    """
    assigned = combine_weights > 0
    layout = make_buffer_layout(
        tf.reshape(tf.where(assigned, expert_index, num_experts), [-1]), num_experts, with_block
    )
    slot = tf.reshape(layout.row, tf.shape(expert_index))
    return Plan(layout.item, slot, layout.counts, dropped=tf.constant(0), places=layout.places)
