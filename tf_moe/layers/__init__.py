"""Keras layers."""

from tf_moe.layers.sparse_moe import SparseMoE

__all__ = ["SparseMoE"]
