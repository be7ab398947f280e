"""The dispatcher on a mesh: every device sorts its own tokens' assignments by expert.

Legend: N shards, R replicas, T tokens in all, S tokens a device, K choices, E experts, M = S * K, D width.
"""

from typing import NamedTuple

import tensorflow as tf

from tf_moe import checks
from tf_moe.dispatch.capacity import DROP_BY
from tf_moe.mesh.device_groups import ShardedGroups, group_by
from tf_moe.mesh.device_rows import sum_rows, take_rows
from tf_moe.mesh.shards import Shards


class ShardedPlan(NamedTuple):
    """Which assignment stands in which row on its device. See `Plan`, which it can stand in for.

    Attributes:
        counts: How the rows are sorted, which is what the experts need to know.
        slot: Int32 `(N, R, S, K)`, the row of each assignment.
        dropped: Int32 scalar, assignments beyond the capacity, over all devices.
        capacity: Rows of an expert that each device may send; None where it sends all.
        shards: The mesh.
        places: None: rows are sorted.

    Example:

    ```python
    strategy = tf_moe.distribute.ExpertParallelStrategy(["CPU:0"])
    (tokens,) = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(tf.random.normal([6, 4])))


    @tf.function
    def move(tokens):
        def step(tokens):  # each to the expert of its largest feature, and back
            expert = tf.expand_dims(tf.argmax(tokens, axis=-1, output_type=tf.int32), -1)
            weights = tf.ones_like(expert, tf.float32)
            plan = tf_moe.dispatch.dispatch_sharded(expert, weights, 4, strategy.shards)
            return plan.combine(plan.dispatch(tokens), weights)

        return strategy.run(step, [tokens])


    same = move(tokens)
    ```
    """

    counts: ShardedGroups
    slot: tf.Tensor
    dropped: tf.Tensor
    capacity: int | None
    shards: Shards
    places: None = None

    @property
    def assigned(self) -> tf.Tensor:
        """Int32 scalar, assignments in all, the dropped ones included."""
        return tf.reduce_sum(self.counts.counts)

    def dispatch(self, tokens: tf.Tensor) -> tf.Tensor:
        """Tokens `(T, D)` -> rows `(N, R, M, D)`, sorted by expert on each device."""
        source = tf.math.floordiv(self.counts.order, self.slot.shape[-1])
        return take_rows(self.shards.split(tokens), source, self.slot)

    def combine(self, outputs: tf.Tensor, combine_weights: tf.Tensor) -> tf.Tensor:
        """Rows `(N, R, M, D)` and weights `(T, K)` -> float32 `(T, D)`, the weighted sum of each token's outputs."""
        weights = self.shards.split(combine_weights)
        return self.shards.join(sum_rows(outputs, weights, self.counts.order, self.slot))


def dispatch_sharded(
    expert_index: tf.Tensor,
    combine_weights: tf.Tensor,
    num_experts: int,
    shards: Shards,
    capacity: int | None = None,
    drop_by: str = "position",
) -> ShardedPlan:
    """Every assignment gets a row on its token's device, sorted by expert there.

    Args:
        expert_index: Int32 `(T, K)`.
        combine_weights: `(T, K)`; an assignment with weight zero goes nowhere.
        num_experts: Number of experts E.
        shards: The mesh.
        capacity: None to drop nothing; else the rows of an expert that each device may send.
        drop_by: Which of a device's assignments stay, see `dispatch_capacity`.

    Raises:
        ValueError: If `drop_by` is not one of `DROP_BY`.

    Example:

    ```python
    strategy = tf_moe.distribute.ExpertParallelStrategy(["CPU:0"])
    (expert,) = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(tf.constant([[2], [0], [2]])))


    @tf.function
    def dropped(expert):
        def step(expert):
            weights = tf.ones_like(expert, tf.float32)
            return tf_moe.dispatch.dispatch_sharded(expert, weights, 4, strategy.shards, capacity=1).dropped

        return strategy.run(step, [expert])


    assert dropped(expert) == 1
    ```
    """
    checks.one_of("drop_by", drop_by, DROP_BY)
    index = shards.split(tf.where(combine_weights > 0, expert_index, num_experts))
    weights = shards.split(combine_weights)
    num_shards, replicas, size, choices = index.shape
    flat = [num_shards, replicas, size * choices]
    priority = tf.reshape(weights, flat) if drop_by == "weight" else None
    groups = group_by(tf.reshape(index, flat), num_experts, priority)
    kept = groups.counts if capacity is None else tf.minimum(groups.counts, capacity)
    dropped = tf.reduce_sum(groups.counts - kept)
    return ShardedPlan(groups, tf.reshape(groups.place, index.shape), dropped, capacity, shards)
