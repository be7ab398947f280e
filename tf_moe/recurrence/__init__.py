"""Loops over time without Keras: the elementwise step, the buffers, and the loop with its gradient by hand."""

from tf_moe.recurrence.buffers import buffers_for
from tf_moe.recurrence.gates import gates_for
from tf_moe.recurrence.scan import lstm_scan

__all__ = ["buffers_for", "gates_for", "lstm_scan"]
