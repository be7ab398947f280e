"""Adding to one slice of a large tensor without copying the rest."""

import tensorflow as tf

_PRODUCTS = ("BatchMatMulV2", "BatchMatMulV3", "MatMul", "Einsum")


def owns_its_memory(tensor: tf.Tensor) -> bool:
    """Whether no other tensor can share a tensor's memory: it is what a matrix product returned.

    Other operations may return their input's memory, such as a sum over an axis of size one, which is the gradient of a
    bias where a group has one row.
    """
    if tf.executing_eagerly():
        return tensor.shape.rank >= 3  # the stacks of matrices; the gradients of smaller ones are cheap to copy
    return tensor.op.type in _PRODUCTS


def add_to_slice(stack: tf.Tensor, at: tf.Tensor, value: tf.Tensor, in_place: bool) -> tf.Tensor:
    """`stack` `(G, ...)` with `value` `(...)` added to `stack[at]`.

    Args:
        stack: `(G, ...)`.
        at: Int32 scalar.
        value: `(...)`.
        in_place: Whether to overwrite `stack`, which then nothing else may read and which must own its memory.
            `tf.tensor_scatter_nd_add` would do so by itself where it can, but never finds that it can on a CPU (it asks
            for host memory, TensorFlow 2.21), and copies the whole stack for each slice.
    """
    if in_place:
        return _add_in_place(stack, value, at)
    return tf.tensor_scatter_nd_add(stack, tf.reshape(at, [1, 1]), tf.expand_dims(value, 0))


def _add_in_place(stack, value, at):
    @tf.custom_gradient
    def add(stack, value):
        total = tf.raw_ops.InplaceAdd(x=stack, i=tf.reshape(at, [1]), v=tf.expand_dims(value, 0))
        return total, lambda d: (d, tf.gather(d, at))  # which the operation does not have, for second derivatives

    return add(stack, value)
