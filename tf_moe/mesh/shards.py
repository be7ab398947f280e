"""Where tokens and experts are: the axes of a mesh that they are split over, and the exchange between the two.

Legend: N shards of the experts, R replicas of each, so N * R devices; T tokens, S = T / (N * R) tokens a device.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import keras
import tensorflow as tf
from tensorflow.experimental import dtensor

REPLICA, EXPERT = "replica", "expert"
_current: contextvars.ContextVar["Shards | None"] = contextvars.ContextVar("shards", default=None)


class Shards:
    """The devices of a mesh as N shards of R replicas.

    Experts are split over the axis "expert", and each shard is held R times, along the axis "replica" if there is one.
    Tokens are split over all devices, as `(N, R, S, ...)`: DTensor splits a dimension over one axis only. The shards'
    axis comes first because DTensor's all-to-all is right only from or to the first dimension, see `Exchange`.

    Args:
        mesh: A mesh with the axis "expert" and perhaps the axis "replica".
    """

    def __init__(self, mesh: dtensor.Mesh):
        self.mesh = mesh
        self.replica_axis = REPLICA if REPLICA in mesh.dim_names else dtensor.UNSHARDED
        self.replicas = mesh.dim_size(REPLICA) if REPLICA in mesh.dim_names else 1
        self.shards = mesh.dim_size(EXPERT)
        self.devices = self.replicas * self.shards
        # A batch is one dimension, so it is split over one axis: the longer one.
        self.batch_axis = REPLICA if self.replicas > self.shards else EXPERT
        self.batch_pieces = max(self.replicas, self.shards)

    def share(self, tokens: int) -> int:
        """Tokens S on a device; all of them where they do not divide evenly, see `split`."""
        return tokens if tokens % self.devices else tokens // self.devices

    def splits_batch(self, size: int) -> bool:
        """Whether a batch of this size, that of all processes, divides evenly, and so is split; see `place_batch`."""
        return size % self.batch_pieces == 0

    def relayout_batch(self, x: tf.Tensor) -> tf.Tensor:
        """`(T, ...)` split over the devices as a batch is; whole where the tokens do not divide evenly.

        The tokens of a batch that is whole may well divide evenly, and DTensor must know before it computes with them:
        it cannot find a layout for some operations between a tensor that is whole and one that is split.
        """
        return self.relayout(x, {} if x.shape[0] % self.devices else {0: self.batch_axis})

    def split(self, x: tf.Tensor) -> tf.Tensor:
        """`(T, ...)` -> `(N, R, S, ...)`, one slice a device.

        A number of tokens that does not divide evenly stays in one piece, `(1, 1, T, ...)`, on every device.
        """
        tokens, *rest = x.shape
        if tokens % self.devices:
            return self.relayout_tokens(tf.reshape(x, [1, 1, tokens, *rest]))
        if self.batch_axis == EXPERT:
            return self.relayout_tokens(tf.reshape(x, [self.shards, self.replicas, self.share(tokens), *rest]))
        x = tf.reshape(x, [self.replicas, self.shards, self.share(tokens), *rest])
        return _swap_first_two(self.relayout(x, {0: REPLICA, 1: EXPERT}))

    def join(self, x: tf.Tensor) -> tf.Tensor:
        """`(N, R, S, ...)` -> `(T, ...)`, the inverse of `split`."""
        if self.batch_axis == REPLICA:
            x = _swap_first_two(x)
        first, second, size, *rest = x.shape
        if self.replicas > 1 and first * second == self.devices:
            x = self.relayout(x, {0: self.batch_axis})
        return tf.reshape(x, [first * second * size, *rest])

    def whole(self, x: tf.Tensor) -> tf.Tensor:
        """The same tensor, all of it on every device."""
        return self.relayout(x, {})

    def experts_layout(self, rank: int) -> dtensor.Layout:
        """The layout of a variable `(E, ...)` that is split over the experts."""
        return dtensor.Layout([EXPERT] + [dtensor.UNSHARDED] * (rank - 1), self.mesh)

    def relayout_tokens(self, x: tf.Tensor) -> tf.Tensor:
        """`(N, R, ...)` with a slice on each device, or `(1, 1, ...)`, all of it on every device."""
        in_one_piece = x.shape[0] * x.shape[1] < self.devices
        return self.relayout(x, {} if in_one_piece else {0: EXPERT, 1: self.replica_axis})

    def relayout(self, x: tf.Tensor, axes: dict[int, str]) -> tf.Tensor:
        """The same tensor, its dimensions split over these axes of the mesh and no others."""
        specs = [axes.get(n, dtensor.UNSHARDED) for n in range(x.shape.rank)]
        return dtensor.relayout(x, dtensor.Layout(specs, self.mesh))


def _swap_first_two(x):
    return tf.transpose(x, [1, 0, *range(2, x.shape.rank)])


def shards_of(variable: keras.Variable | tf.Variable | None) -> Shards | None:
    """The shards of the mesh a variable is on; None if it is on none."""
    # Not `value`, which under mixed precision is a copy in another dtype.
    variable = getattr(variable, "_value", variable)
    return Shards(variable.layout.mesh) if isinstance(variable, dtensor.DVariable) else None


def current_shards() -> Shards | None:
    """The shards of the computation being traced, None on one device. Ask in the forward pass: a gradient has none."""
    return _current.get()


@contextlib.contextmanager
def computed_where(variable: keras.Variable | tf.Variable | None) -> Iterator[Shards | None]:
    """Inside, `current_shards` are those of this variable, and none if that is None."""
    token = _current.set(shards_of(variable))
    try:
        yield _current.get()
    finally:
        _current.reset(token)
