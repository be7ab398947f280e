"""Connecting the processes of a cluster, and what they tell one another besides tensors.

TensorFlow's coordination service watches over the processes: each sends heartbeats to process 0, and when one is lost,
the collective operations of the others fail with an error instead of waiting for ever.

The private parts of TensorFlow that this needs are all of `tensorflow.python.eager.context` that is used below; there
is no public way to set the timeouts. The tests fail when they go.
"""

import atexit
import contextlib
import itertools
import os
import signal
import sys
import time

import tensorflow as tf
from tensorflow.experimental import dtensor
from tensorflow.python.eager import context

from tf_moe.distribute.cluster import Cluster

_JOB = "worker"

# How long a process that has finished waits for the others to finish too; see `_leave`.
_LEAVE_SECONDS = 30.0

_joined: Cluster | None = None
_calls = itertools.count()


def join(
    cluster: Cluster | None,
    device_type: str = "CPU",
    devices_per_process: int | None = None,
    start_timeout: float = 600.0,
    heartbeat_timeout: float = 20.0,
) -> None:
    """Sets up the devices of this process and connects it with the others; call it before any other use of TensorFlow.

    From then on, when a process is lost, the next collective operation of every other one raises an error within about
    `heartbeat_timeout`. An exception that ends a process makes them do so at once, and the error repeats its message.
    Python tells nobody of a script that ends without an exception, or by `sys.exit` with any code: its process waits
    for up to half a minute for the others to end too, and only after that counts as lost.

    While it waits for the others to start, the process can be stopped by SIGQUIT and SIGKILL only.

    Args:
        cluster: The processes, from `find_cluster`; with None there is nothing to connect.
        device_type: "CPU" or "GPU": the devices that compute.
        devices_per_process: The number of logical CPU devices to make; None leaves the devices as they are.
        start_timeout: How many seconds to wait for the other processes to start.
        heartbeat_timeout: After how many seconds of silence a process is taken for lost.

    Raises:
        RuntimeError: If TensorFlow has been used already, if this process has joined another cluster, or if the others
            do not start in time.
        ValueError: If a number of devices is given for another type than CPU, or is not positive.

    Example:
        >>> from tf_moe.distribute.connection import join
        >>> join(tf_moe.distribute.find_cluster(), devices_per_process=2)
    """
    global _joined
    if device_type.upper() not in ("CPU", "GPU"):
        raise ValueError(f"`device_type` must be 'CPU' or 'GPU'. Received: {device_type!r}")
    if devices_per_process is not None:
        _make_cpus(device_type, devices_per_process)
    if cluster is None or cluster == _joined:
        return
    if _joined is not None:
        raise RuntimeError(f"A process can join one cluster only. It has joined {_joined}. Received: {cluster}")
    if context.context()._initialized:
        raise RuntimeError(
            "A cluster can be joined only before TensorFlow is used, and it has been. Make the strategy first of all, "
            f"before any tensor, layer or dataset. Received: {cluster}"
        )
    os.environ.update(
        DTENSOR_CLIENT_ID=str(cluster.process_index),
        DTENSOR_NUM_CLIENTS=str(cluster.num_processes),
        DTENSOR_JOBS=",".join(cluster.addresses),
        DTENSOR_JOB_NAME=_JOB,
    )
    with _sigterm_kept():
        _connect(cluster, device_type, start_timeout, heartbeat_timeout)
    _joined = cluster
    atexit.register(_leave, os.getpid())


def barrier(timeout: float = 3600.0) -> None:
    """Waits until every process has come here; all have to call it, in the same order with `broadcast_int`.

    Args:
        timeout: How many seconds to wait. The loss of a process is noticed earlier.

    Raises:
        RuntimeError: If a process was lost or did not come in time.

    Example:
        >>> cluster = tf_moe.distribute.find_cluster()
        >>> if cluster is None or cluster.process_index == 0:
        ...     pathlib.Path("prepared").mkdir()
        >>> tf_moe.distribute.barrier()
    """
    if _joined is not None:
        _wait(f"tf_moe/barrier/{next(_calls)}", timeout)


def broadcast_int(value: int, timeout: float = 3600.0) -> int:
    """The value that process 0 gave, in every process: a random seed or a step's number, say.

    All have to call it, in the same order with `barrier`. Without other processes it is the value itself.

    Args:
        value: Any integer. Only that of process 0 counts.
        timeout: How many seconds to wait. The loss of a process is noticed earlier.

    Returns:
        The integer of process 0.

    Raises:
        RuntimeError: If a process was lost or did not come in time.

    Example:
        >>> seed = tf_moe.distribute.broadcast_int(np.random.randint(2**31))
    """
    if _joined is None:
        return int(value)
    key = f"tf_moe/broadcast/{next(_calls)}"
    if _joined.process_index == 0:
        context.context().set_config_key_value(key, str(int(value)))
    # A process that only waits for the key would wait for ever if another one is lost; at a barrier it is told.
    _wait(key, timeout)
    return int(context.context().get_config_key_value(key, int(timeout * 1000)))


def _make_cpus(device_type: str, number: int) -> None:
    if device_type.upper() != "CPU":
        raise ValueError(
            "`devices_per_process` is for logical CPU devices. Choose the GPUs of a process by CUDA_VISIBLE_DEVICES or "
            f"tf.config.set_visible_devices. Received: {number} for device_type={device_type!r}"
        )
    if number < 1:
        raise ValueError(f"`devices_per_process` must be positive. Received: {number}")
    cpu = tf.config.list_physical_devices("CPU")[0]
    configured = tf.config.get_logical_device_configuration(cpu) or [None]
    if len(configured) == number:
        return
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * number)
    except RuntimeError as error:
        raise RuntimeError(
            f"The logical devices can be set only before TensorFlow is used, and it has been, with {len(configured)} "
            "CPU device(s). Make the strategy first of all, before any tensor, layer or dataset. "
            f"Received: devices_per_process={number}"
        ) from error


def _connect(cluster: Cluster, device_type: str, start_timeout: float, heartbeat_timeout: float) -> None:
    # DTensor would set up the service without timeouts, and process 0 would wait for ever for one that does not start.
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=f"/job:{_JOB}/replica:0/task:0",
        cluster_register_timeout_in_ms=int(start_timeout * 1000),
        heartbeat_timeout_in_ms=int(heartbeat_timeout * 1000),
    )
    context.context().coordination_service.cluster_register_with_barrier = True
    try:
        dtensor.initialize_accelerator_system(device_type, enable_coordination_service=False)
    except tf.errors.DeadlineExceededError as error:
        raise RuntimeError(
            f"{_described(cluster)} waited {start_timeout:g} s for all of {cluster.addresses} to start. See that each "
            f"is running and can reach the first one. Received: {error.message}"
        ) from error
    except tf.errors.OpError as error:
        raise RuntimeError(
            f"{_described(cluster)} could not connect with {cluster.addresses}. See that its own port is free, and the "
            f"first process running. Received: {error.message}"
        ) from error


@contextlib.contextmanager
def _sigterm_kept():
    """TensorFlow's service catches SIGTERM and does nothing: without this, only SIGKILL would end the process."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # Only the main thread may set a handler; None is one that was not set from Python.
        with contextlib.suppress(ValueError):
            if handler is not None:
                signal.signal(signal.SIGTERM, handler)


def _wait(name: str, timeout: float) -> None:
    try:
        context.context().wait_at_barrier(name, int(timeout * 1000))
    except tf.errors.OpError as error:
        raise RuntimeError(
            f"{_described(_joined)} waited for the others, and one was lost or did not come within {timeout:g} s: each "
            f"has to make the same calls in the same order. Received: {error.message}"
        ) from error


def _leave(pid: int) -> None:
    """Ends this process together with the others.

    If it just ended, it would be taken for lost: after a script's normal end the others would log errors, and after an
    exception they would have to wait for its heartbeats to fail, and not learn the reason.
    """
    if os.getpid() != pid:  # a forked child inherits this call, but not the connection
        return
    error = getattr(sys, "last_value", None)  # what Python has just printed, if a script ends by an exception
    reason = f"ended by {type(error).__name__}: {error}"
    if error is None:
        try:
            context.context().wait_at_barrier("tf_moe/leave", int(_LEAVE_SECONDS * 1000))
            return
        except tf.errors.DeadlineExceededError:
            reason = f"came to the end of its script {_LEAVE_SECONDS:g} s ago, and waits for the others no longer"
        except tf.errors.OpError:  # one was lost: there is no waiting any more
            return
    lost = isinstance(error, tf.errors.OpError) and "Collective ops is aborted" in str(error)
    try:
        context.context().report_error_to_cluster(tf.errors.INTERNAL, f"{_described(_joined)} {reason}"[:2000])
        if _joined.process_index == 0:
            time.sleep(1)  # the one that passes errors on has to live until it has done so
    except tf.errors.OpError:  # the service has failed already
        lost = error is not None
    if lost:
        print(
            f"{_described(_joined)}: another process failed or cannot be reached, so this one had to end. "
            "Look for the first error in the output of all of them.",
            file=sys.stderr,
        )


def _described(cluster: Cluster) -> str:
    return f"Process {cluster.process_index} ({cluster.addresses[cluster.process_index]}) of {cluster.num_processes}"
