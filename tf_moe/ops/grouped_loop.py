"""The loop over groups: each group that has rows, with just its own rows. See `grouped.py`."""

from collections.abc import Callable, Sequence

import tensorflow as tf


def loop_groups(
    function: Callable[..., tf.Tensor], rows: tf.Tensor, counts: tf.Tensor, weights: Sequence[tf.Tensor]
) -> tf.Tensor:
    """`apply_grouped` by a loop; `function` runs again in the backward pass.

    The automatic gradient of such a loop would add a whole stack of weight gradients in every turn. By hand, each
    group's is made once and put in its place.
    """

    @tf.custom_gradient
    def apply(rows, *weights):
        group, start, stop = _groups_with_rows(counts)
        turns, size = tf.shape(group)[0], tf.shape(rows)[0]

        def slice_of(tensor, n):  # a slice of the leading axis is a view: nothing is copied
            return tf.expand_dims(tensor[group[n]], 0)

        def rows_of(tensor, n):
            return tf.expand_dims(tensor[start[n] : stop[n]], 0)

        def forward(n, outputs):
            values = function(rows_of(rows, n), *(slice_of(w, n) for w in weights))
            return n + 1, outputs.write(n, tf.squeeze(values, 0))

        def gradient(d_output):
            def backward(n, d_rows, *d_weights):
                inputs = [rows_of(rows, n), *(slice_of(w, n) for w in weights)]
                with tf.GradientTape() as tape:
                    tape.watch(inputs)
                    values = function(*inputs)
                d_inputs = tape.gradient(values, inputs, rows_of(d_output, n), unconnected_gradients="zero")
                d_chunk, *d_slices = (tf.squeeze(d, 0) for d in d_inputs)
                d_weights = [d.write(group[n], s) for d, s in zip(d_weights, d_slices, strict=True)]
                return n + 1, d_rows.write(n, d_chunk), *d_weights

            # Groups without rows write nothing, and stack() makes zeros of what was not written.
            d_weights = [tf.TensorArray(w.dtype, w.shape[0], element_shape=w.shape[1:]) for w in weights]
            d_rows = tf.TensorArray(rows.dtype, turns, infer_shape=False, element_shape=[None, rows.shape[-1]])
            _, d_rows, *d_weights = tf.while_loop(
                lambda n, *_: n < turns, backward, (0, d_rows, *d_weights), parallel_iterations=1
            )
            return _concat(d_rows, size), *(d.stack() for d in d_weights)

        width = function(rows[:0][tf.newaxis], *(w[:1] for w in weights)).shape[-1]
        outputs = tf.TensorArray(rows.dtype, turns, infer_shape=False, element_shape=[None, width])
        _, outputs = tf.while_loop(lambda n, *_: n < turns, forward, (0, outputs), parallel_iterations=1)
        return _concat(outputs, size), gradient

    return apply(rows, *weights)


def _groups_with_rows(counts):
    ends = tf.cumsum(counts)
    group = tf.cast(tf.squeeze(tf.where(counts > 0), -1), tf.int32)
    return group, tf.gather(ends - counts, group), tf.gather(ends, group)


def _concat(pieces, size):
    """The pieces one after another, and zeros for the rows that are of no group."""
    joined = pieces.concat()
    return tf.pad(joined, [[0, size - tf.shape(joined)[0]], [0, 0]])
