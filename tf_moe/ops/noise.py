"""Random numbers, on one device or a mesh."""

import math

import keras
import tensorflow as tf

from tf_moe.mesh.shards import Shards, current_shards

# Up to so many, every device draws all numbers and keeps its own, so that they are the same for any number of devices.
# Beyond, each device draws its own stream: DTensor gives every device a seed of its own.
LARGEST_COMMON_DRAW = 2**22
# `Noise.rows` can begin only at multiples of this: the generator draws four numbers at a time.
ROWS_OF_A_DRAW = 4
# 2^32 over the golden ratio: its multiples are far from one another in 32 bits, and as it is odd, never equal.
_SCATTER = 0x9E3779B1


def common_seed(generator: keras.random.SeedGenerator) -> tf.Tensor:
    """A seed for a stateless draw, int32 `(2,)`: another in every call."""
    seed, call = tf.unstack(generator.next())  # int64
    # The cast keeps the lower half of a seed. The upper one says with which number its calls begin.
    return tf.cast(tf.stack([seed, call + seed // 2**32 * _SCATTER]), tf.int32)


def next_seed(generator: keras.random.SeedGenerator) -> tf.Tensor:
    """As `common_seed`, but different on every replica of MirroredStrategy."""
    seed = common_seed(generator)
    replica = tf.distribute.get_replica_context()
    if replica is not None and replica.num_replicas_in_sync > 1:  # their generators are copies of one another
        seed = tf.random.experimental.stateless_fold_in(seed, replica.replica_id_in_sync_group)
    return seed


def normal(shape: list[int] | tf.Tensor, seed: tf.Tensor, shards: Shards | None) -> tf.Tensor:
    """Standard normal float32 numbers of a shape, static on a mesh; up to 4 million, the same as on one device."""
    shape = _parts(shape, shards)
    if not shape:
        return normal([1], seed, shards)[0]
    of_pairs = [*shape[:-1], (shape[-1] + 1) // 2]
    bits = tf.random.stateless_uniform(of_pairs, seed, None, None, tf.int32)
    if shards and math.prod(shape) <= LARGEST_COMMON_DRAW:
        bits = shards.whole(bits)
    return _normal_of_bits(bits)[..., : shape[-1]]


class Noise:
    """Standard normal float32 numbers of one seed: of a whole shape, or of some rows of a matrix and no others.

    Args:
        seed: Int32 `(2,)`.
    """

    def __init__(self, seed: tf.Tensor):
        self._seed = seed

    def whole(self, shape: list[int] | tf.Tensor) -> tf.Tensor:
        """Numbers of a shape, static on a mesh."""
        return normal(shape, self._seed, current_shards())

    def rows(self, start: tf.Tensor, rows: tf.Tensor, columns: int) -> tf.Tensor:
        """Those rows of `whole((T, columns))`, on one device; `start` is a multiple of `ROWS_OF_A_DRAW`."""
        pairs = (columns + 1) // 2
        key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=self._seed)
        # The generator makes four numbers of each value of its counter.
        counter += tf.cast(tf.stack([start // ROWS_OF_A_DRAW * pairs, 0]), tf.uint64)
        bits = tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=[rows, pairs], key=key, counter=counter, alg=tf.random.Algorithm.PHILOX.value, dtype=tf.int32
        )
        return _normal_of_bits(bits)[:, :columns]


def _normal_of_bits(bits: tf.Tensor) -> tf.Tensor:
    """Two standard normal numbers of each random int32 (..., n) -> (..., 2n), by Box and Muller's method.

    18 bits are a radius, and 14 an angle. On a CPU it takes half the time of the other ways: one random number makes
    two, and logarithm, sine and cosine are vectorised, which they are not in `stateless_normal`.
    """
    radius = tf.cast(tf.bitwise.right_shift(bits, 14), tf.float32)  # -2^17 to 2^17 - 1
    radius = tf.sqrt(-2 * tf.math.log((radius + (2.0**17 + 0.5)) * 2.0**-18))
    angle = (tf.cast(tf.bitwise.bitwise_and(bits, 2**14 - 1), tf.float32) - (2.0**13 - 0.5)) * (math.pi / 2**13)
    return tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], axis=-1)


def between_0_and_1(shape: list[int] | tf.Tensor, seed: tf.Tensor, shards: Shards | None) -> tf.Tensor:
    """Uniform float32 numbers, neither 0 nor 1, of a shape as `normal` takes it; the same where its numbers are."""
    shape = _parts(shape, shards)
    # Those drawn are multiples of 2^-23 from 0; in the middle between two, they are symmetric and never 0.
    numbers = tf.random.stateless_uniform(shape, seed) + 2.0**-24
    return shards.whole(numbers) if shards and math.prod(shape) <= LARGEST_COMMON_DRAW else numbers


def uniform(shape: list[int], seed: tf.Tensor, shards: Shards | None) -> tf.Tensor:
    """Float32 numbers in [0, 1), the same on every device; without a mesh, as TensorFlow draws them."""
    numbers = tf.random.stateless_uniform(shape, seed)
    return shards.whole(numbers) if shards else numbers


def _parts(shape, shards):
    """A shape as a list: of integers on a mesh, which draws no other, else maybe of tensors."""
    if isinstance(shape, (list, tuple, tf.TensorShape)):
        return list(shape)
    return tf.get_static_value(shape).tolist() if shards else tf.unstack(shape)
