"""Dispatchers: from each token's experts and their combine weights to moved tokens and back. They hold no variables."""

from tf_moe.dispatch.capacity import DROP_BY, capacity_of, dispatch_capacity
from tf_moe.dispatch.plan import Plan
from tf_moe.dispatch.sharded import ShardedPlan, dispatch_sharded
from tf_moe.dispatch.sorted import dispatch_sorted

__all__ = ["DROP_BY", "Plan", "ShardedPlan", "capacity_of", "dispatch_capacity", "dispatch_sharded", "dispatch_sorted"]
