"""Trained models made into others: dense ones into mixtures."""

from tf_moe.conversion.upcycle import upcycle, upcycle_model

__all__ = ["upcycle", "upcycle_model"]
