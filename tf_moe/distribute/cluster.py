"""Which processes there are, and which of them this one is: from TF_CONFIG or any tf.distribute cluster resolver."""

import dataclasses
import json
import os
from collections.abc import Iterable

import tensorflow as tf

from tf_moe import checks

# `tf_moe.distribute.launch` sets it.
DEVICES_VARIABLE = "TF_MOE_DEVICES_PER_PROCESS"

# In the order of the processes' numbers.
_JOBS = ("chief", "worker")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several processes that compute together.

    Attributes:
        process_index: The number of this process, counted from 0. With a chief, the chief is process 0.
        addresses: "host:port" of every process, in the order of their numbers.

    Raises:
        ValueError: If an address is not "host:port" or there twice, or `process_index` is not the number of one.

    Example:
        >>> cluster = tf_moe.distribute.Cluster(process_index=0, addresses=("a.net:2222", "b.net:2222"))
        >>> cluster.num_processes
        2
    """

    process_index: int
    addresses: tuple[str, ...]

    def __post_init__(self):
        if isinstance(self.addresses, str) or not isinstance(self.addresses, Iterable):
            raise ValueError(f"addresses must be a tuple of texts 'host:port'. Received: addresses={self.addresses!r}")
        object.__setattr__(self, "addresses", tuple(self.addresses))  # lists would not compare with it, nor hash
        for address in self.addresses:
            host, _, port = str(address).rpartition(":")
            if not host or not port.isdecimal() or "," in host:
                raise ValueError(f"Every process needs an address 'host:port'. Received: {address!r}")
        if len(set(self.addresses)) < len(self.addresses):
            raise ValueError(f"Every process needs an address of its own. Received: {self.addresses}")
        if not 0 <= checks.integer("process_index", self.process_index, least=0) < len(self.addresses):
            raise ValueError(
                "A process's number must be that of one of the addresses, counted from 0. "
                f"Received: process {self.process_index} of {self.addresses}"
            )

    @property
    def num_processes(self) -> int:
        """The number of processes."""
        return len(self.addresses)


def find_cluster(cluster_resolver: tf.distribute.cluster_resolver.ClusterResolver | None = None) -> Cluster | None:
    """The cluster that this process belongs to, or None where it is alone.

    Args:
        cluster_resolver: Knows the cluster; by default the environment variable TF_CONFIG does, as
            tf.distribute.MultiWorkerMirroredStrategy reads it.

    Returns:
        The cluster, or None without one (no TF_CONFIG, or a single process in it).

    Raises:
        ValueError: If TF_CONFIG is not a JSON object, the cluster is not made of workers, and maybe one chief, with an
            address each, or it does not say which of them this process is.
        TypeError: If `cluster_resolver` is not a ClusterResolver.

    Example:
        >>> import os
        >>> os.environ["TF_CONFIG"] = (
        ...     '{"cluster": {"worker": ["a.net:2222", "b.net:2222"]}, "task": {"type": "worker", "index": 1}}'
        ... )
        >>> tf_moe.distribute.find_cluster()
        Cluster(process_index=1, addresses=('a.net:2222', 'b.net:2222'))
    """
    if cluster_resolver is None:
        if not os.environ.get("TF_CONFIG"):
            return None
        _check_tf_config(os.environ["TF_CONFIG"])
        cluster_resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    kind = tf.distribute.cluster_resolver.ClusterResolver
    checks.instance("cluster_resolver", cluster_resolver, kind, "Leave it out to use TF_CONFIG.")
    spec = cluster_resolver.cluster_spec()
    if spec is None or not spec.jobs:
        return None
    if unknown := sorted(set(spec.jobs) - set(_JOBS)):
        raise ValueError(
            f"Expert parallelism has only 'worker' tasks and at most one 'chief', all of which train together; run "
            f"evaluators on their own, without TF_CONFIG. Received: tasks of type {unknown} in {spec.as_dict()}"
        )
    tasks = {job: spec.job_tasks(job) for job in _JOBS if job in spec.jobs}
    if len(tasks.get("chief", ())) > 1:
        raise ValueError(f"There can be one 'chief' at most. Received: {spec.as_dict()}")
    # The resolver for Slurm knows its task only once it was asked for the cluster.
    job, index = cluster_resolver.task_type, cluster_resolver.task_id
    if sum(map(len, tasks.values())) == 1:
        return None
    if job not in tasks or index is None or not 0 <= int(index) < len(tasks[job]):
        raise ValueError(
            "The cluster must say which of its tasks this process is: by 'task': {'type': ..., 'index': ...} in "
            "TF_CONFIG, or by task_type and task_id of the resolver. "
            f"Received: type {job!r} and index {index!r} in {spec.as_dict()}"
        )
    before = len(tasks["chief"]) if job == "worker" and "chief" in tasks else 0
    return Cluster(before + int(index), tuple(address for job in tasks for address in tasks[job]))


def devices_per_process() -> int | None:
    """The number of devices that `tf_moe.distribute.launch` was told to give each process; None if it was not told.

    Raises:
        ValueError: If the environment variable TF_MOE_DEVICES_PER_PROCESS is not a positive integer.

    Example:
        >>> import os
        >>> os.environ["TF_MOE_DEVICES_PER_PROCESS"] = "4"
        >>> tf_moe.distribute.devices_per_process()
        4
    """
    value = os.environ.get(DEVICES_VARIABLE, "")
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{DEVICES_VARIABLE} must be a positive integer. Received: {value!r}")
    return int(value)


def _check_tf_config(value: str) -> None:
    try:
        config = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"TF_CONFIG is not JSON ({error}). Received: {value!r}") from error
    if not isinstance(config, dict):
        raise ValueError(f"TF_CONFIG must be a JSON object with 'cluster' and 'task'. Received: {value!r}")
    cluster, task = config.get("cluster", {}), config.get("task", {})
    if not isinstance(cluster, dict) or not all(map(_are_addresses, cluster.values())):
        raise ValueError(
            "'cluster' in TF_CONFIG must be a JSON object with a list of addresses 'host:port' for each type of task. "
            f"Received: {value!r}"
        )
    if not isinstance(task, dict) or not str(task.get("index", 0)).isdecimal():  # which scripts of a shell give as text
        raise ValueError(
            f"'task' in TF_CONFIG must be a JSON object whose 'index' is an integer from 0 on. Received: {value!r}"
        )


def _are_addresses(tasks) -> bool:
    """Whether these are texts, in a list or by their numbers."""
    if isinstance(tasks, dict):
        return all(map(str.isdecimal, tasks)) and _are_addresses(list(tasks.values()))
    return isinstance(tasks, list) and all(isinstance(address, str) for address in tasks)
