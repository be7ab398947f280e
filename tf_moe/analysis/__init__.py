"""What a network costs and how it uses its experts.

`tf_moe.analysis.labels` has labels to measure specialisation in. `write_report` needs matplotlib to draw; so does
`tf_moe.analysis.plots`, which is imported apart.
"""

from tf_moe.analysis.co_activation import CoActivation, measure_co_activation
from tf_moe.analysis.counts import Counts, count
from tf_moe.analysis.dead_experts import DeadExperts
from tf_moe.analysis.drops import measure_drops
from tf_moe.analysis.findings import Findings, measure_all
from tf_moe.analysis.labels import Label
from tf_moe.analysis.memory import Memory, training_memory
from tf_moe.analysis.monitor import ExpertMonitor
from tf_moe.analysis.page import write_top_inputs
from tf_moe.analysis.report import write_report
from tf_moe.analysis.specialisation import Specialisation, measure_specialisation
from tf_moe.analysis.stability import Stability, measure_stability
from tf_moe.analysis.top_inputs import TopInput, top_inputs
from tf_moe.analysis.usage import Usage, measure_usage

__all__ = [
    "CoActivation",
    "Counts",
    "DeadExperts",
    "ExpertMonitor",
    "Findings",
    "Label",
    "Memory",
    "Specialisation",
    "Stability",
    "TopInput",
    "Usage",
    "count",
    "measure_all",
    "measure_co_activation",
    "measure_drops",
    "measure_specialisation",
    "measure_stability",
    "measure_usage",
    "top_inputs",
    "training_memory",
    "write_report",
    "write_top_inputs",
]
