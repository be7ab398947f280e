"""Where a loop over time keeps one tensor a step: in a TensorArray, or in a static tensor."""

import keras
import tensorflow as tf

from tf_moe.mesh.shards import shards_of


class ListBuffers:
    """One tensor a step in a tf.TensorArray: writing and reading move no data. The fast form and the default."""

    pieces = 1

    @staticmethod
    def empty(steps: int | tf.Tensor, like: tf.Tensor) -> tf.TensorArray:
        """A buffer for `steps` tensors of the shape and dtype of `like`."""
        unknown = not isinstance(steps, int)
        size = tf.maximum(steps, 1) if unknown else steps
        # Not cleared: a backward pass reads every element, and a persistent tape reads it twice.
        buffer = tf.TensorArray(like.dtype, size, element_shape=like.shape, clear_after_read=False)
        # Without a step nothing would be written, and a list that holds nothing cannot be stacked.
        return buffer.write(0, tf.zeros_like(like)) if unknown else buffer

    @staticmethod
    def write(buffer: tf.TensorArray, t: tf.Tensor, value: tf.Tensor) -> tf.TensorArray:
        """The buffer with `value` at step t."""
        return buffer.write(t, value)

    @staticmethod
    def stack(buffer: tf.TensorArray, steps: int | tf.Tensor) -> tf.Tensor:
        """All steps as one tensor [steps, ...]."""
        return buffer.stack() if isinstance(steps, int) else buffer.stack()[:steps]

    @staticmethod
    def row(x: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        """x[t] of a dense tensor [steps, ...], a view where the memory allows it."""
        return x[t]

    @staticmethod
    def reverse(x: tf.Tensor) -> tf.Tensor:
        """The steps of x [steps, ...] in reverse order."""
        return tf.reverse(x, [0])

    @staticmethod
    def product(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """The product of x [steps, B, D] and a kernel [D, K] -> [steps, B, K], over all steps at once."""
        flat = tf.matmul(tf.reshape(x, [-1, kernel.shape[0]]), kernel)
        shape = tf.concat([tf.shape(x)[:2], tf.shape(kernel)[1:]], 0)
        return tf.ensure_shape(tf.reshape(flat, shape), [*x.shape[:2], kernel.shape[1]])

    @staticmethod
    def kernel_gradient(x: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
        """The gradient of the kernel of `product`: x [steps, B, D] and dy [steps, B, K] -> [D, K]."""
        x, dy = (tf.reshape(a, [-1, a.shape[-1]]) for a in (x, dy))
        return tf.matmul(x, dy, transpose_a=True)


class StaticBuffers:
    """One tensor [steps, ...] updated by a scatter: DTensor has no rule for TensorArray's operations.

    Off XLA each write copies the whole buffer (see `tf_moe.ops.slices`: the scatter never works in place on a CPU), so
    the cost of writing grows with the square of the steps: the loop over time is cut into pieces.
    """

    pieces = 4  # measured: 64x35x128 takes 54 ms in one piece, 38 in two, 31 in four (TensorArray: 28)

    @staticmethod
    def empty(steps: int, like: tf.Tensor) -> tf.Tensor:
        """A zero buffer [steps, ...] of the shape and dtype of `like`, which also gives it its layout."""
        return tf.repeat(tf.expand_dims(tf.zeros_like(like), 0), steps, axis=0)

    @staticmethod
    def write(buffer: tf.Tensor, t: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
        """The buffer with `value` at step t."""
        return tf.tensor_scatter_nd_update(buffer, tf.reshape(t, [1, 1]), tf.expand_dims(value, 0))

    @staticmethod
    def stack(buffer: tf.Tensor, steps: int) -> tf.Tensor:
        """All steps as one tensor [steps, ...]: the buffer itself."""
        return buffer

    @staticmethod
    def row(x: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        """x[t] of a dense tensor [steps, ...]; a gather: indexing a sharded tensor may crash."""
        return tf.gather(x, t)

    @staticmethod
    def reverse(x: tf.Tensor) -> tf.Tensor:
        """The steps of x [steps, ...] in reverse order; DTensor has no rule for tf.reverse."""
        return tf.stack(tf.unstack(x)[::-1])

    @staticmethod
    def product(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """The product of x [steps, B, D] and a kernel [D, K] -> [steps, B, K]. The batch may be split: not flat."""
        return tf.einsum("tbd,dk->tbk", x, kernel)

    @staticmethod
    def kernel_gradient(x: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
        """The gradient of the kernel of `product`: x [steps, B, D] and dy [steps, B, K] -> [D, K]."""
        return tf.einsum("tbd,tbk->dk", x, dy)


def buffers_for(variable: keras.Variable | tf.Variable) -> type[ListBuffers] | type[StaticBuffers]:
    """The buffers of a loop that reads `variable`: static ones if it lives on a DTensor mesh."""
    return StaticBuffers if shards_of(variable) else ListBuffers
