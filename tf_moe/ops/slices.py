"""Writing into a part of a large tensor without copying the rest.

`tf.tensor_scatter_nd_add` and its like would do so by themselves where they can, but never find that they can on a CPU
(they ask for host memory, TensorFlow 2.21), and copy the whole tensor each time.

What overwrites its input needs one that owns its memory and that nothing else may still read.
"""

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
        in_place: Whether to overwrite `stack`.
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


def write_rows(buffer: tf.Tensor, start: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """A buffer with some of its rows overwritten, each of them once in its life: the gradient relies on it.

    Args:
        buffer: `(T, ...)`, overwritten.
        start: Int32 scalar, the first of the rows.
        rows: `(n, ...)`, where start + n is at most T.
    """

    @tf.custom_gradient
    def write(buffer, rows):
        place = start + tf.range(tf.shape(rows)[0])
        written = tf.raw_ops.InplaceUpdate(x=buffer, i=place, v=rows)
        return written, lambda d: (d, tf.gather(d, place))

    return write(buffer, rows)
