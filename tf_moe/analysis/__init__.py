"""What a network costs and how it uses its experts. `plots` needs matplotlib, so it is imported apart."""

from tf_moe.analysis.counts import Counts, count
from tf_moe.analysis.dead_experts import DeadExperts
from tf_moe.analysis.memory import Memory, training_memory
from tf_moe.analysis.usage import Usage, measure_usage

__all__ = ["Counts", "DeadExperts", "Memory", "Usage", "count", "measure_usage", "training_memory"]
