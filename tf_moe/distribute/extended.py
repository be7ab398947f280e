"""What tf.distribute asks of a strategy: how variables are made, datasets split, steps run and values reduced."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.experimental import dtensor

from tf_moe.distribute.batches import DistributedBatches, distribute, reader
from tf_moe.distribute.programs import new_program
from tf_moe.distribute.supported import check_supported
from tf_moe.distribute.values import OnMesh, unwrap
from tf_moe.distribute.variables import create_variable, to_plain
from tf_moe.mesh.shards import Shards


class _GlobalContext(tf.distribute.ReplicaContext):
    """The one logical replica: DTensor code sees the batch of all devices, so nothing is left to reduce."""

    def __init__(self, strategy):
        super().__init__(strategy, replica_id_in_sync_group=0)

    def all_reduce(self, reduce_op, value, options=None):
        return value


class MeshExtended(tf.distribute.StrategyExtended):
    """A strategy of one logical replica whose variables and batches are DTensors.

    Args:
        strategy: The strategy this belongs to.
        shards: The mesh.
    """

    def __init__(self, strategy: tf.distribute.Strategy, shards: Shards):
        super().__init__(strategy)
        self.shards = shards

    def _create_variable(self, next_creator, **kwargs):
        for unused in ("use_resource", "expected_shape", "aggregation", "synchronization", "distribute_strategy"):
            kwargs.pop(unused, None)
        like = kwargs.pop("colocate_with", None)  # Keras's optimizers name the weight a slot belongs to
        return create_variable(self.shards, like=like, **kwargs)

    def _experimental_distribute_dataset(self, dataset, options):
        return distribute(dataset, self.shards)

    def _distribute_datasets_from_function(self, dataset_fn, options):
        readers, mine = reader(self.shards)
        context = tf.distribute.InputContext(
            num_input_pipelines=readers, input_pipeline_id=mine, num_replicas_in_sync=readers
        )
        return DistributedBatches(dataset_fn(context), self.shards, is_global=dtensor.num_clients() == 1)

    def call_for_each_replica(self, fn, args=(), kwargs=None):
        args, kwargs = tf.nest.map_structure(self._on_mesh, (tuple(args), kwargs or {}))
        scope = new_program()
        with _GlobalContext(self._container_strategy()), _default_mesh(self.shards.mesh), scope:
            outputs = fn(*args, **kwargs)
        if not tf.executing_eagerly():
            check_supported(tf.compat.v1.get_default_graph())
        return tf.nest.map_structure(_off_mesh, outputs)

    def _on_mesh(self, x):
        """An argument of a step: a value of a distributed dataset, or a plain batch (`train_on_batch`)."""
        if isinstance(x, OnMesh):
            x = x.tensor
        elif tf.is_tensor(x) and x.shape.rank and not tf.executing_eagerly() and x.shape[0] is not None:
            batch = {0: self.shards.batch_axis} if self.shards.splits_batch(x.shape[0]) else {}
            x = self.shards.relayout(x, batch)
        if tf.is_tensor(x) and not x.shape.is_fully_defined():
            raise ValueError(
                "On a mesh all shapes are static. Received: a batch of shape "
                f"{x.shape}. Pass datasets to fit, evaluate and predict (or through "
                "strategy.experimental_distribute_dataset): their batches keep the shapes they have."
            )
        return x

    def _replica_ctx_update(self, var, fn, args=(), kwargs=None, group=True):
        return fn(var, *args, **(kwargs or {}))

    def _replica_ctx_all_reduce(self, reduce_op, value, options=None):
        return value

    def _update(self, var, fn, args=(), kwargs=None, group=True):
        return fn(var, *args, **(kwargs or {}))

    def _default_device_scope(self):
        # Not the mesh: users read datasets in a scope, and call fit there, and DTensor has no iterators.
        return contextlib.nullcontext()

    def _use_merge_call(self):
        return False

    def _local_results(self, value):
        if not isinstance(value, OnMesh):
            return (value,)
        if tf.executing_eagerly():
            return (to_plain(value.tensor, self.shards.mesh),)
        return (self.shards.whole(value.tensor),)

    def _reduce_to(self, reduce_op, value, destinations, options):
        return unwrap(value)

    def _gather_to_implementation(self, value, destinations, axis, options):
        return value  # `Strategy.gather` passes it to _local_results, which makes one tensor of it

    def value_container(self, value):
        return value

    def _in_multi_worker_mode(self):
        return dtensor.num_clients() > 1

    def _get_local_replica_id(self, replica_id):
        return replica_id

    @property
    def _num_replicas_in_sync(self):
        return 1

    @property
    def worker_devices(self):
        return tuple(self.shards.mesh.local_devices())

    @property
    def parameter_devices(self):
        return self.worker_devices


@contextlib.contextmanager
def _default_mesh(mesh: dtensor.Mesh) -> Iterator[None]:
    """`dtensor.default_mesh`, which in TensorFlow 2.21 leaves its mesh to all that follows where its body raises."""
    error = None
    with dtensor.default_mesh(mesh):
        try:
            yield
        except BaseException as raised:
            error = raised
    if error is not None:
        raise error


def _off_mesh(x):
    return OnMesh(x) if isinstance(x, tf.Tensor) and x.shape.rank != 0 else x
