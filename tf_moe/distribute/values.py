"""A tensor on the mesh, as it is handed to and from `strategy.run`."""

from typing import Any

import tensorflow as tf


class OnMesh(tf.experimental.ExtensionType, tf.distribute.DistributedValues):
    """A DTensor that stands for one value over all devices: what a distributed dataset yields and `run` returns.

    It plays the part of MirroredStrategy's PerReplica: `strategy.run` takes it apart, and
    `strategy.experimental_local_results` gives the whole tensor. Unlike a bare tensor it keeps its static shape: a
    `tf.function` that Keras makes would give up the static shape of a tensor at the second length it meets, and on a
    mesh all shapes are static.

    Attributes:
        tensor: The DTensor.
    """

    tensor: tf.Tensor

    @property
    def shape(self) -> tf.TensorShape:
        """Shape over all devices."""
        return self.tensor.shape

    @property
    def dtype(self) -> tf.DType:
        """Type of the elements."""
        return self.tensor.dtype

    class Spec:
        """What of a value a trace depends on: all of its shape."""

        def most_specific_common_supertype(self, others):
            return self if all(other == self for other in others) else None


def unwrap(structure: Any) -> Any:
    """The same structure with tensors in place of `OnMesh`."""
    return tf.nest.map_structure(lambda x: x.tensor if isinstance(x, OnMesh) else x, structure)
