"""Experts split over devices and machines; and trainings that go on after an interruption, on one device too."""

from tf_moe.distribute.checkpoint import restore_sharded, save_sharded
from tf_moe.distribute.cluster import Cluster, devices_per_process, find_cluster
from tf_moe.distribute.connection import barrier, broadcast_int
from tf_moe.distribute.resume import Resume
from tf_moe.distribute.strategy import ExpertParallelStrategy

__all__ = [
    "Cluster",
    "ExpertParallelStrategy",
    "Resume",
    "barrier",
    "broadcast_int",
    "devices_per_process",
    "find_cluster",
    "restore_sharded",
    "save_sharded",
]
