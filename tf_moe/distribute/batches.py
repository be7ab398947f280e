"""Batches of a dataset, split over the devices of a mesh."""

from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.experimental import dtensor

from tf_moe.distribute.values import OnMesh
from tf_moe.mesh.shards import Shards

AutoShardPolicy = tf.data.experimental.AutoShardPolicy


class DistributedBatches:
    """Iterates over a dataset and lays every batch out over the mesh.

    A plain iterable: Keras wraps the steps of a `tf.data` iterator in `tf.experimental.Optional`, which DTensor cannot
    carry.

    Args:
        dataset: An iterable of nested structures of tensors with a batch as first axis.
        shards: The mesh.
        is_global: Whether each process reads whole batches, and keeps its part of them. Otherwise each reads just its
            own part, and all parts of a batch have one size.
    """

    def __init__(self, dataset: Iterable, shards: Shards, is_global: bool = True):
        self.dataset, self._shards, self._is_global = dataset, shards, is_global

    def __iter__(self) -> "MeshIterator":
        return MeshIterator(self)

    def place(self, batch: Any) -> Any:
        """A batch of the dataset, on the mesh."""
        return place_all(batch, self._shards, self._is_global)


class MeshIterator(Iterator):
    """One pass over `DistributedBatches`; it begins when this is made."""

    def __init__(self, batches: DistributedBatches):
        self.batches, self._iterator = batches, iter(batches.dataset)

    def __next__(self):
        return self.batches.place(next(self._iterator))


def reader(shards: Shards) -> tuple[int, int]:
    """How many different parts processes read of a batch, and the number of this one's.

    Fewer than processes where a mesh of replicas gives two of them the same examples.
    """
    mine = _pieces_here(shards)
    return shards.batch_pieces // len(mine), min(mine) // len(mine)


def distribute(dataset: Iterable, shards: Shards) -> DistributedBatches:
    """The batches of a dataset, read as `tf.data.experimental.AutoShardPolicy` says.

    By default, and with DATA, every process reads whole batches and keeps its part. With OFF each process's dataset has
    just its own part of every batch.

    Args:
        dataset: A `tf.data.Dataset`, or any other iterable of batches, of which each process reads all.
        shards: The mesh.

    Raises:
        ValueError: If the policy is FILE or HINT; or OFF on a mesh where two processes compute the same examples.
    """
    policy = AutoShardPolicy.AUTO
    if isinstance(dataset, tf.data.Dataset):
        policy = dataset.options().experimental_distribute.auto_shard_policy
    if policy in (AutoShardPolicy.FILE, AutoShardPolicy.HINT):
        raise ValueError(
            "ExpertParallelStrategy does not choose files for a process. Received: a dataset with "
            f"auto_shard_policy={policy.name}. Take this process's files, such as dataset.shard(num_processes, index), "
            "and set auto_shard_policy to OFF; or leave it, and every process reads all and keeps its part."
        )
    processes = dtensor.num_clients()
    if policy != AutoShardPolicy.OFF or processes == 1:
        return DistributedBatches(dataset, shards)
    if reader(shards)[0] != processes:
        raise ValueError(
            f"On this mesh some of the {processes} processes compute the same examples. Received: a dataset with "
            "auto_shard_policy=OFF, in which each reads its own. Leave the policy; or, in a loop of your own, build "
            "the dataset in strategy.distribute_datasets_from_function, which says what a process has to read (fit "
            "does not take what that returns)."
        )
    return DistributedBatches(dataset, shards, is_global=False)


def _pieces_here(shards):
    """Numbers of the pieces of a batch that this process's devices have."""
    return {location[shards.batch_axis] for location in shards.mesh.local_device_locations()}


def place_all(batch: Any, shards: Shards, is_global: bool = True) -> Any:
    """A nested structure of plain arrays on the mesh, see `place_batch`; what is there stays."""

    def place(x):
        # What is left out, such as one output's sample weights; from a generator it comes as an Optional, which Keras
        # takes for None too.
        if x is None or isinstance(x, tf.experimental.Optional):
            return None
        return x if isinstance(x, OnMesh) else OnMesh(place_batch(x, shards, is_global))

    with tf.device(shards.mesh.local_devices()[0]):
        return tf.nest.map_structure(place, batch)


def place_batch(x: Any, shards: Shards, is_global: bool = True) -> tf.Tensor:
    """Lay a batch out over the devices: split where it divides evenly, else whole on every device.

    A batch that does not divide evenly, such as the last of an epoch, is computed by every device. Padding it instead
    would be wrong wherever a sample weight of zero does not reach: in the balance of experts, in batch normalisation,
    in the weight that Keras gives each batch in the epoch's loss.

    Args:
        x: Anything TensorFlow makes a dense tensor of.
        shards: The mesh.
        is_global: Whether `x` is the batch of all processes, or just this process's part.

    Raises:
        ValueError: If x is ragged, sparse or of strings; or a process's own part does not divide evenly.
    """
    is_dense = not isinstance(x, (tf.RaggedTensor, tf.SparseTensor))
    x = tf.convert_to_tensor(x) if is_dense else x
    if not is_dense or x.dtype == tf.string:
        raise ValueError(
            f"ExpertParallelStrategy distributes dense tensors of numbers. Received: {x!r}. Turn strings into numbers "
            "in the dataset's map, and make ragged or sparse batches dense (to_tensor, padded_batch)."
        )
    mesh = shards.mesh
    mine = [location[shards.batch_axis] for location in mesh.local_device_locations()]
    pieces, readers = (shards.batch_pieces, 1) if is_global else (len(_pieces_here(shards)), reader(shards)[0])
    if x.shape.rank and shards.splits_batch(x.shape[0] * readers):
        layout = dtensor.Layout.batch_sharded(mesh, shards.batch_axis, rank=x.shape.rank)
        parts = tf.split(x, pieces, axis=0)
        first = 0 if is_global else min(mine)
        return dtensor.pack([parts[n - first] for n in mine], layout)
    if x.shape.rank and not is_global:
        raise ValueError(
            f"Each process's part of a batch must divide evenly over its {pieces} devices. Received: a part of "
            f"{x.shape[0]} examples. Batch with drop_remainder=True."
        )
    return dtensor.pack([x] * len(mine), dtensor.Layout.replicated(mesh, x.shape.rank))
