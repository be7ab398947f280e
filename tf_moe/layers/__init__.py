"""Keras layers."""

from tf_moe.layers.lstm import LSTM
from tf_moe.layers.sparse_moe import SparseMoE

__all__ = ["LSTM", "SparseMoE"]
