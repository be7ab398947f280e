"""Loops over time: the LSTM's elementwise step, buffers, its loop with a gradient by hand; and one over any step."""

from tf_moe.recurrence.buffers import buffers_for
from tf_moe.recurrence.lstm_gates import lstm_gates_for
from tf_moe.recurrence.scan import lstm_scan
from tf_moe.recurrence.steps import scan_steps

__all__ = ["buffers_for", "lstm_gates_for", "lstm_scan", "scan_steps"]
