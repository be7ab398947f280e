"""The dispatcher with a fixed capacity: static shapes, and drops."""

import numbers
from fractions import Fraction

import tensorflow as tf

from tf_moe import checks
from tf_moe.dispatch.plan import Plan
from tf_moe.ops.block import held_by_block
from tf_moe.ops.groups import group_by
from tf_moe.ops.rows import gather_or_none

DROP_BY = ("position", "weight")
"""What a full expert can drop: the last tokens, or those with the lowest weights.

Example:

>>> [tf_moe.layers.SparseMoE(4, 16, capacity_factor=1.25, drop_by=way).drop_by for way in tf_moe.dispatch.DROP_BY]
['position', 'weight']
"""


def dispatch_capacity(
    expert_index: tf.Tensor,
    combine_weights: tf.Tensor,
    num_experts: int,
    capacity: int | tf.Tensor,
    drop_by: str = "position",
) -> Plan:
    """Each expert gets `capacity` rows; assignments beyond them are dropped and counted.

    Args:
        expert_index: Int32 `(T, K)`.
        combine_weights: `(T, K)`; an assignment with weight zero takes no place.
        num_experts: Number of experts E.
        capacity: Rows C of each expert.
        drop_by: Which assignments stay: "position", those of the first tokens; "weight", those with the highest weights
            (and the first tokens among equals).

    Returns:
        A plan with E * C rows.

    Raises:
        ValueError: If `drop_by` is not one of `DROP_BY`.

    Example:

    >>> index, weights = tf.constant([[0], [0], [1]]), tf.constant([[0.2], [0.9], [0.5]])
    >>> plan = tf_moe.dispatch.dispatch_capacity(index, weights, num_experts=2, capacity=1)
    >>> plan.slot.numpy().ravel(), int(plan.dropped)  # token 1 finds expert 0 full
    (array([ 0, -1,  1], dtype=int32), 1)
    >>> plan = tf_moe.dispatch.dispatch_capacity(index, weights, num_experts=2, capacity=1, drop_by="weight")
    >>> plan.slot.numpy().ravel()
    array([-1,  0,  1], dtype=int32)
    """
    checks.one_of("drop_by", drop_by, DROP_BY)  # any other word would drop by position
    assigned = combine_weights > 0
    index = tf.reshape(tf.where(assigned, expert_index, num_experts), [-1])
    priority = tf.reshape(combine_weights, [-1]) if drop_by == "weight" else None
    groups = group_by(index, num_experts, priority)
    assignment = gather_or_none(groups.order, tf.reshape(held_by_block(groups.starts, groups.counts, capacity), [-1]))
    expert = tf.minimum(index, num_experts - 1)
    position = groups.place - tf.gather(groups.starts, expert)
    held = tf.logical_and(index < num_experts, position < capacity)
    slot = tf.reshape(tf.where(held, expert * capacity + position, -1), tf.shape(expert_index))
    kept = tf.minimum(groups.counts, capacity)
    dropped = tf.reduce_sum(groups.counts - kept)
    return Plan(assignment, slot, kept, dropped, capacity)


def capacity_of(tokens: int | tf.Tensor, num_experts: int, k: int, capacity_factor: float) -> int | tf.Tensor:
    """Rows of an expert: `capacity_factor` times its fair share k T / E, rounded up, at most T and at least 1.

    Args:
        tokens: Number of tokens T, masked ones included, since shapes cannot depend on the mask. A Python integer gives
            a Python integer.
        num_experts: Number of experts E.
        k: Experts chosen for a token, in all.
        capacity_factor: 1.0 is just enough for even loads. Taken as the nearest fraction with a denominator of at most
            10,000, so that the arithmetic is in whole numbers.

    Raises:
        ValueError: If `num_experts` or `k` is no positive integer, or `capacity_factor` no positive number.

    Example:

    >>> tf_moe.dispatch.capacity_of(tokens=100, num_experts=8, k=2, capacity_factor=1.25)  # 31.25 rounded up
    32
    """
    num_experts, k = checks.integer("num_experts", num_experts), checks.integer("k", k)
    capacity_factor = checks.number("capacity_factor", capacity_factor, "a positive number", lambda x: x > 0)
    # In whole numbers: a share that is whole should not be rounded up because 0.1 has no exact binary form.
    per_token = min(1, Fraction(capacity_factor).limit_denominator(10_000) * k / num_experts)
    above, below = per_token.numerator, per_token.denominator
    if isinstance(tokens, numbers.Integral):
        return max(1, -(-int(tokens) * above // below))
    # Where 32 bits can hold all that is computed they do: LiteRT has no division of 64.
    wide = tf.cast(tokens, tf.int32 if below * (above + 1) < 2**31 else tf.int64)
    rest = tf.math.floordiv(tf.math.floormod(wide, below) * above + below - 1, below)
    return tf.maximum(1, tf.cast(tf.math.floordiv(wide, below) * above + rest, tf.int32))
