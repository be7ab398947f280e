"""Variables on a mesh: replicated, or split over the experts."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from tf_moe.mesh.new_variables import experts_of_new_variables, initializing
from tf_moe.mesh.shards import EXPERT, Shards


class MeshVariable(dtensor.DVariable):
    """A DVariable that also takes and gives plain values, whole, so that Keras can save and load it.

    Reading the whole of a variable that is split over processes is a collective: all processes must do it.
    """

    def numpy(self) -> np.ndarray:
        """All of the value."""
        return to_plain(self.read_value(), self.layout.mesh).numpy()

    def assign(self, value, *args, **kwargs):
        """Set the value, from a DTensor or from a plain value that is the same in every process."""
        if tf.executing_eagerly():
            value = tf.convert_to_tensor(value, self.dtype)
            if not dtensor.is_dtensor(value):
                value = place(value, self.layout, self.dtype)
        return super().assign(value, *args, **kwargs)

    # The sparse gradients of embeddings. DTensor has no rule for scattering; the sum is the same. To make gradients
    # dense before an optimizer sees them would not do: where a row is there twice, Keras squares each part by itself.

    def scatter_add(self, sparse_delta, *args, **kwargs):
        """Add `tf.IndexedSlices`."""
        return self.assign_add(tf.convert_to_tensor(sparse_delta), *args, **kwargs)

    def scatter_sub(self, sparse_delta, *args, **kwargs):
        """Subtract `tf.IndexedSlices`."""
        return self.assign_sub(tf.convert_to_tensor(sparse_delta), *args, **kwargs)


def to_plain(x: tf.Tensor, mesh: dtensor.Mesh) -> tf.Tensor:
    """A plain tensor with all of a DTensor."""
    layout = dtensor.Layout.replicated(mesh, x.shape.rank)
    if dtensor.fetch_layout(x) != layout:
        x = dtensor.relayout(x, layout)
    return dtensor.unpack(x)[0]


class Slice(NamedTuple):
    """The part of a value that is on one device.

    Attributes:
        begin: First index in every dimension.
        size: Size of every dimension.
        is_first_copy: Whether no device before this one, in the order of the mesh, has the same part.
    """

    begin: tuple[int, ...]
    size: tuple[int, ...]
    is_first_copy: bool


def local_slices(shape: tf.TensorShape, layout: dtensor.Layout) -> list[Slice]:
    """The parts of a value of this shape that are on each device of this process."""
    mesh, slices = layout.mesh, []
    for location in mesh.local_device_locations():
        begin, size = [0] * len(shape), list(shape)
        for axis, name in enumerate(layout.sharding_specs):
            if name != dtensor.UNSHARDED:
                size[axis] //= mesh.dim_size(name)
                begin[axis] = location[name] * size[axis]
        first = all(location[name] == 0 for name in mesh.dim_names if name not in layout.sharding_specs)
        slices.append(Slice(tuple(begin), tuple(size), first))
    return slices


def place(value: Any, layout: dtensor.Layout, dtype: tf.DType | str | None = None) -> tf.Tensor:
    """A plain value as a DTensor of this layout, each device getting its slice."""
    mesh = layout.mesh
    with tf.device(mesh.local_devices()[0]):
        if tf.is_tensor(value) and dtensor.is_dtensor(value):
            value = to_plain(value, mesh)
        value = tf.convert_to_tensor(value, dtype)
        slices = local_slices(value.shape, layout)
        return dtensor.pack([tf.slice(value, s.begin, s.size) if value.shape.rank else value for s in slices], layout)


def create_variable(
    shards: Shards,
    initial_value: Any,
    like: tf.Variable | None = None,
    dtype: tf.DType | str | None = None,
    **kwargs: Any,
) -> MeshVariable:
    """A variable on the mesh.

    Args:
        shards: The mesh.
        initial_value: A value, or a function that makes it.
        like: A variable that this one belongs to, such as an optimizer's slot to its weight: it is split as that is.
        dtype: Type of the elements.
        **kwargs: Passed to `tf.Variable`.
    """
    experts = experts_of_new_variables()
    make = initial_value if callable(initial_value) else lambda: initial_value
    if experts is not None:
        value = _by_shards(make, experts, dtype, shards)
    elif isinstance(like, dtensor.DVariable) and like.layout == shards.experts_layout(like.shape.rank):
        value = _like(make, like, shards)
    else:
        with tf.device(shards.mesh.local_devices()[0]):
            value = tf.convert_to_tensor(make(), dtype)
        value = place(value, dtensor.Layout.replicated(shards.mesh, value.shape.rank))
    return MeshVariable(value, dtype=dtype, **kwargs)


def _by_shards(make, experts, dtype, shards):
    """Initial values of one shard after the other, so that no device ever has those of all experts."""
    _check_divides(experts, shards)
    share, mesh, slices = experts // shards.shards, shards.mesh, {}
    locations = mesh.local_device_locations()
    for start in {location[EXPERT] * share for location in locations}:
        with tf.device(mesh.local_devices()[0]), initializing(start, start + share):
            slices[start] = tf.convert_to_tensor(make(), dtype)
    values = [slices[location[EXPERT] * share] for location in locations]
    return dtensor.pack(values, shards.experts_layout(values[0].shape.rank))


def _like(make, like, shards):
    """Initial values of an optimizer's slot for a weight that is split over the experts."""
    with tf.Graph().as_default():
        shape = tf.convert_to_tensor(make()).shape
    by_expert = shape.rank and shape[0] == like.shape[0]
    layout = shards.experts_layout(shape.rank) if by_expert else dtensor.Layout.replicated(shards.mesh, shape.rank)
    # Here every device computes just its slice; it is for constants: random numbers would differ by device.
    return dtensor.call_with_layout(make, layout)


def _check_divides(experts: int, shards: Shards) -> None:
    """Raise ValueError unless the experts divide evenly over the shards."""
    if experts % shards.shards == 0:
        return
    below = experts - experts % shards.shards
    nearest = [str(n) for n in (below, below + shards.shards) if n]
    raise ValueError(
        f"Experts must divide evenly over the {shards.shards} shards of the mesh. Received: num_experts={experts}. "
        f"The nearest that fits is {' or '.join(nearest)}; or give the strategy fewer shards, such as "
        f'mesh_shape={{"replica": {shards.devices // _largest_divisor(experts, shards)}, '
        f'"expert": {_largest_divisor(experts, shards)}}}.'
    )


def _largest_divisor(experts, shards):
    """The most shards of these devices that the experts divide over."""
    return max(n for n in range(1, shards.devices + 1) if shards.devices % n == 0 and experts % n == 0)
