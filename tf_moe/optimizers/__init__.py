"""Optimizers and schedules of the paper, and how to give the experts an optimizer of their own."""

from tf_moe.optimizers.by_part import optimizer_for
from tf_moe.optimizers.factored_adam import FactoredAdam
from tf_moe.optimizers.schedules import WarmupInverseSqrt

__all__ = ["FactoredAdam", "WarmupInverseSqrt", "optimizer_for"]
