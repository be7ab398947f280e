"""Trained models made into others: dense ones into mixtures, mixtures with fewer experts, experts in fewer bits."""

from tf_moe.conversion.fewer import Shrunk, merge_experts, prune_experts, shrink_experts
from tf_moe.conversion.quantize import quantize_experts
from tf_moe.conversion.upcycle import upcycle, upcycle_model

__all__ = [
    "Shrunk",
    "merge_experts",
    "prune_experts",
    "quantize_experts",
    "shrink_experts",
    "upcycle",
    "upcycle_model",
]
