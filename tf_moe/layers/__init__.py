"""Keras layers, and the loss that belongs to one of them."""

from tf_moe.layers.attention import Attention
from tf_moe.layers.attentive_lstm import AttentiveLSTM, AttentiveState
from tf_moe.layers.lstm import LSTM
from tf_moe.layers.recording import record_routings
from tf_moe.layers.sampled_softmax import SampledSoftmax, SampledSoftmaxLoss
from tf_moe.layers.sparse_moe import SparseMoE

__all__ = [
    "LSTM",
    "Attention",
    "AttentiveLSTM",
    "AttentiveState",
    "SampledSoftmax",
    "SampledSoftmaxLoss",
    "SparseMoE",
    "record_routings",
]
