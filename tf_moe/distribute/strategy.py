"""Training with the experts split over devices."""

import math
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.experimental import dtensor

from tf_moe import checks
from tf_moe.distribute.cluster import devices_per_process, find_cluster
from tf_moe.distribute.connection import broadcast_int, join
from tf_moe.distribute.extended import MeshExtended
from tf_moe.distribute.keras_methods import wrap_keras_methods
from tf_moe.distribute.seed import global_seed
from tf_moe.distribute.values import unwrap
from tf_moe.mesh.shards import EXPERT, REPLICA, Shards


class ExpertParallelStrategy(tf.distribute.Strategy):
    """Replicates a model over devices and splits its experts over the same devices, with stock `model.fit`.

    LSTMs, gates, embeddings and their optimizer slots are whole on every device, and each device computes its share of
    the batch. The experts of every `SparseMoE`, and their slots, are split: each expert is on one device, or one per
    replica, and receives tokens from all. The number of experts, over both levels together, must be a multiple of the
    number of shards. Results are those of one device, except that a `capacity_factor` applies to each device's tokens,
    and that for Keras's `Dropout`, or a gate's noise of over 4 million numbers, each device draws its own.

    Variables are DTensors, and a step is one program over all devices: there is one logical replica
    (`num_replicas_in_sync` is 1), the batch size is that of all devices together, and losses need no scaling. Shapes
    must be static: every new batch shape is compiled once, and each compiled program keeps some 20 MB for good, to work
    around a fault of DTensor; so use few different lengths. A batch whose size does not divide evenly over
    the devices, such as the last of an epoch, is computed whole on every device, which is exact, but slower and larger.

    In a cluster of several processes, make the strategy before any other use of TensorFlow. All of them then have the
    first one's seed, set by `keras.utils.set_random_seed` or else random. A process waits 600 seconds for the others to
    start, and considers one lost after 20 seconds of silence.

    Keras has no hook for some of this, so the first strategy wraps, for the whole process, the methods of `keras.Model`
    that make its batch functions (as in `train_on_batch` and `predict`), its `save`, `save_weights` and `export`, and
    file access in `keras.callbacks.ModelCheckpoint` and `BackupAndRestore`; models made elsewhere work as before.

    Args:
        devices: Names such as `["GPU:0", "GPU:1"]`. Default: all GPUs, else all logical CPUs (one per machine, unless
            `tf.config.set_logical_device_configuration` makes more). In a cluster, the devices of this process.
        mesh_shape: `{"replica": r, "expert": e}` for more devices than experts can use: experts are split e ways, and
            each shard is held r times. r * e is the number of devices over all processes. Default: all in "expert".
            DTensor splits a batch over only one axis, the longer, so layers other than `SparseMoE` are computed
            min(r, e) times over.
        cluster_resolver: A `tf.distribute.cluster_resolver.ClusterResolver` of several processes. Default: from the
            environment variable TF_CONFIG, if set; otherwise, this process alone. See
            `tf_moe.distribute.launch` for a cluster on one machine.

    Raises:
        ValueError: If `devices` are not names of different devices of this process, or `mesh_shape` does not fit them;
            if TF_CONFIG is malformed or the cluster is not one of workers, see `find_cluster`, or the environment
            variable TF_MOE_DEVICES_PER_PROCESS is no positive integer. When a `SparseMoE` is built: if its experts do
            not divide evenly over the shards.
        TypeError: If `cluster_resolver` is not a ClusterResolver.
        RuntimeError: If TensorFlow has been used before a cluster could be joined, or other processes do not start.

    Example:

    ```python
    strategy = tf_moe.distribute.ExpertParallelStrategy()
    with strategy.scope():
        moe = tf_moe.layers.SparseMoE(num_experts=8, expert_hidden=16, k=2)
        model = keras.Sequential([keras.layers.Embedding(50, 8), moe, keras.layers.Dense(50)])
        model.compile("adam", loss)
    model.fit(dataset)
    ```

    Reference: section 3.1 of Shazeer et al. (2017).
    """

    def __init__(
        self,
        devices: Sequence[str] | None = None,
        mesh_shape: dict[str, int] | None = None,
        cluster_resolver: tf.distribute.cluster_resolver.ClusterResolver | None = None,
    ):
        # DTensor's pass that combines all-reduces breaks on training steps ("operand does not dominate this use"), or
        # leaves zeros for losses and metrics. `tests/distribute/test_strategy.py` tells when it can stay on.
        os.environ["DTENSOR_ENABLE_COMBINE_ALL_REDUCES_OPTIMIZATION"] = "0"
        is_list = isinstance(devices, Sequence) and not isinstance(devices, str)
        if devices is not None and not (is_list and devices):
            raise ValueError(
                'devices must be a list of names such as ["CPU:0", "CPU:1"], one at least; leave it out for all. '
                f"Received: devices={devices!r}."
            )
        cluster = find_cluster(cluster_resolver)
        device_type = _device_type(devices)
        join(cluster, device_type, devices_per_process() if device_type == "CPU" else None)
        devices = _local_devices(device_type) if devices is None else list(devices)
        _check_devices(devices, device_type)
        total = len(devices) * (cluster.num_processes if cluster else 1)
        dims = _mesh_dims(mesh_shape, total)
        if cluster is None:
            self.mesh = dtensor.create_mesh(dims, devices=devices)
        else:
            self.mesh = dtensor.create_distributed_mesh(dims, local_devices=devices, device_type=device_type)
            # Initial values, noise and the order of data come from each process's generators: they must agree.
            seed = global_seed()
            keras.utils.set_random_seed(broadcast_int(random.getrandbits(31) if seed is None else seed))
        self.shards = Shards(self.mesh)
        wrap_keras_methods()
        super().__init__(MeshExtended(self, self.shards))

    @property
    def is_chief(self) -> bool:
        """Whether this is the process that writes files."""
        return dtensor.client_id() == 0

    def reduce(self, reduce_op: tf.distribute.ReduceOp | str, value: Any, axis: int | Sequence[int] | None) -> Any:
        """The value itself, reduced over `axis` if that is not None: with one logical replica there is only one."""
        value = unwrap(value)
        if axis is None:
            return value
        mean = str(getattr(reduce_op, "value", reduce_op)).upper() == "MEAN"
        return tf.nest.map_structure(lambda x: (tf.reduce_mean if mean else tf.reduce_sum)(x, axis), value)


def _device_type(devices) -> str:
    """The type of the devices, found without initialising any."""
    if devices:
        return _spec(devices[0]).device_type
    return "GPU" if tf.config.list_physical_devices("GPU") else "CPU"


def _spec(device: str) -> tf.DeviceSpec:
    name = str(device)
    try:
        return tf.DeviceSpec.from_string(name if name.startswith("/") else f"/device:{name}")
    except ValueError as error:
        raise ValueError(f'A device has a name such as "CPU:0" or "GPU:1". Received: {device!r}.') from error


def _check_devices(devices, device_type) -> None:
    """Raise ValueError unless they are different devices that there are; DTensor fails on others when it uses them."""
    there = [int(name.rsplit(":", 1)[-1]) for name in _local_devices(device_type)]
    asked = [_spec(name) for name in devices]
    numbers = [device.device_index for device in asked]
    if {device.device_type for device in asked} != {device_type} or len(numbers) != len({*numbers} & {*there}):
        raise ValueError(
            f"devices must be different ones of this process, which has of type {device_type}: "
            f"{', '.join(_local_devices(device_type)) or 'none'}. Received: devices={devices!r}. "
            "tf.config.set_logical_device_configuration makes several of one."
        )


def _local_devices(device_type: str) -> list[str]:
    names = [device.name for device in tf.config.list_logical_devices(device_type)]
    return [f"{device_type}:{name.rsplit(':', 1)[-1]}" for name in names if _is_local(name)]


def _is_local(name: str) -> bool:
    task = tf.DeviceSpec.from_string(name).task
    return dtensor.num_clients() == 1 or task in (None, dtensor.client_id())


def _mesh_dims(mesh_shape, total) -> list[tuple[str, int]]:
    if mesh_shape is None:
        return [(EXPERT, total)]
    sizes = {REPLICA: 1, EXPERT: 1, **(mesh_shape if isinstance(mesh_shape, Mapping) else {})}
    try:
        sizes = {name: checks.integer(name, size) for name, size in sizes.items()}
        fits = isinstance(mesh_shape, Mapping) and math.prod(sizes.values()) == total
    except ValueError:  # which says what one of them must be, and not what they must be together
        fits = False
    if set(sizes) != {REPLICA, EXPERT} or not fits:
        raise ValueError(
            f'mesh_shape must be {{"replica": r, "expert": e}} with r * e = {total}, the number of devices. '
            f"Received: mesh_shape={mesh_shape!r}. Make more logical devices, or pass numbers that multiply to {total}."
        )
    if sizes[REPLICA] == 1:
        return [(EXPERT, total)]
    return [(REPLICA, sizes[REPLICA]), (EXPERT, sizes[EXPERT])]
