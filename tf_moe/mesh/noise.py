"""Random numbers, on one device or a mesh."""

import math

import keras
import tensorflow as tf

from tf_moe.mesh.shards import Shards

# Up to so many, every device draws all numbers and keeps its own, so that they are the same for any number of devices.
# Beyond, each device draws its own stream: DTensor gives every device a seed of its own.
LARGEST_COMMON_DRAW = 2**22
# 2^32 over the golden ratio: its multiples are far from one another in 32 bits, and as it is odd, never equal.
_SCATTER = 0x9E3779B1


def common_seed(generator: keras.random.SeedGenerator) -> tf.Tensor:
    """A seed for a stateless draw, int32 `(2,)`: another in every call."""
    seed, call = tf.unstack(generator.next())  # int64
    # The cast keeps the lower half of a seed. The upper one says with which number its calls begin.
    return tf.cast(tf.stack([seed, call + seed // 2**32 * _SCATTER]), tf.int32)


def next_seed(generator: keras.random.SeedGenerator) -> tf.Tensor:
    """The same, and another on every replica of MirroredStrategy."""
    seed = common_seed(generator)
    replica = tf.distribute.get_replica_context()
    if replica is not None and replica.num_replicas_in_sync > 1:  # their generators are copies of one another
        seed = tf.random.experimental.stateless_fold_in(seed, replica.replica_id_in_sync_group)
    return seed


def normal(shape: list[int] | tf.Tensor, seed: tf.Tensor, shards: Shards | None) -> tf.Tensor:
    """Standard normal float32 numbers of a shape, static on a mesh; up to 4 million, the same as on one device."""
    # Not `stateless_normal`, whose logarithms and sines are not vectorised on a CPU: there it takes longer.
    return tf.math.ndtri(between_0_and_1(shape, seed, shards))


def between_0_and_1(shape: list[int] | tf.Tensor, seed: tf.Tensor, shards: Shards | None) -> tf.Tensor:
    """Uniform float32 numbers, neither 0 nor 1, of a shape as `normal` takes it; the same where its numbers are."""
    # Those drawn are multiples of 2^-23 from 0; in the middle between two, they are symmetric and never 0.
    numbers = tf.random.stateless_uniform(shape, seed) + 2.0**-24
    return shards.whole(numbers) if shards and math.prod(shape) <= LARGEST_COMMON_DRAW else numbers


def uniform(shape: list[int], seed: tf.Tensor, shards: Shards | None) -> tf.Tensor:
    """Float32 numbers in [0, 1), the same on every device; without a mesh, as TensorFlow draws them."""
    numbers = tf.random.stateless_uniform(shape, seed)
    return shards.whole(numbers) if shards else numbers
