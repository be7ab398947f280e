"""The form of `apply_grouped` for XLA: all shapes follow from S and G, none from the loads. See `grouped.py`.

The first C rows of every group go through one batched product, C being a little over the mean load; what the hot groups
have beyond it goes through a loop of chunks of c rows, with as many turns as the loads of the step need. Nothing is
dropped, and rows that are of no group cost nothing.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_moe.ops.block import from_block, make_block, to_block
from tf_moe.ops.rows import gather_or_zero

Function = Callable[..., tf.Tensor]


def block_and_chunks(
    function: Function, batched: Function, rows: tf.Tensor, counts: tf.Tensor, weights: Sequence[tf.Tensor]
) -> tf.Tensor:
    """`apply_grouped` with static shapes; for the hot groups' rows `function` runs again in the backward pass.

    `batched` is the same function for the block, where it may be one that recomputes.
    """
    size = tf.shape(rows)[0]
    capacity, chunk_rows = _sizes(size, counts.shape[0])
    block = make_block(counts, size, capacity)
    chunks = _Chunks(counts, capacity, chunk_rows)

    @tf.custom_gradient
    def apply(rows, *weights):
        # Keeping the tape of the block lets the loops below add to its results in place.
        with tf.GradientTape() as tape:
            tape.watch([rows, *weights])
            output = from_block(batched(to_block(rows, block), *weights), block)

        def forward(n, output):
            group, place = chunks.at(n)
            values = function(_chunk(rows, place), *(_slice(w, group) for w in weights))
            return n + 1, _put(output, place, values)

        def gradient(d_output):
            def backward(n, d_rows, *d_weights):
                group, place = chunks.at(n)
                inputs = [_chunk(rows, place), *(_slice(w, group) for w in weights)]
                with tf.GradientTape() as tape:
                    tape.watch(inputs)
                    values = function(*inputs)
                d_chunk, *d_slices = tape.gradient(
                    values, inputs, _chunk(d_output, place), unconnected_gradients="zero"
                )
                at = tf.reshape(group, [1, 1])
                d_weights = [tf.tensor_scatter_nd_add(d, at, s) for d, s in zip(d_weights, d_slices, strict=True)]
                return n + 1, _put(d_rows, place, d_chunk), *d_weights

            d_rows, *d_weights = tape.gradient(output, [rows, *weights], d_output, unconnected_gradients="zero")
            start = (0, _with_spare_row(d_rows), *d_weights)
            _, d_rows, *d_weights = tf.while_loop(lambda n, *_: n < chunks.total, backward, start)
            return d_rows[:-1], *d_weights

        start = (0, _with_spare_row(output))
        _, complete = tf.while_loop(lambda n, _: n < chunks.total, forward, start)
        return complete[:-1], gradient

    return apply(rows, *weights)


def _sizes(size, num_groups: int):
    """Places of a group in the block, and rows of a chunk. Two standard deviations of evenly random loads fit.

    XLA folds these to constants, since it knows the size when it compiles.
    """
    mean = tf.cast(size, tf.float32) / num_groups
    capacity = tf.where(mean >= 2, tf.cast(tf.round(mean + 2 * tf.sqrt(mean)), tf.int32), 0)
    return capacity, tf.maximum(8, capacity // 4)


class _Chunks:
    """The list of chunks: every group's rows beyond the block's, cut into pieces."""

    def __init__(self, counts, capacity, chunk_rows):
        beyond = tf.maximum(counts - capacity, 0)
        self._up_to = tf.cumsum(tf.math.floordiv(beyond + chunk_rows - 1, chunk_rows))
        self._starts, self._counts = tf.cumsum(counts, exclusive=True), counts
        self._capacity, self._rows = capacity, chunk_rows
        self.total = self._up_to[-1]

    def at(self, n):
        """The group of chunk n and the places of its rows, (c,), -1 after its last."""
        group = tf.searchsorted(self._up_to, tf.expand_dims(n, 0), side="right")[0]
        before = tf.where(group > 0, tf.gather(self._up_to, tf.maximum(group - 1, 0)), 0)
        position = self._capacity + (n - before) * self._rows + tf.range(self._rows)
        place = tf.gather(self._starts, group) + position
        return group, tf.where(position < tf.gather(self._counts, group), place, -1)


def _chunk(rows, place):
    return tf.expand_dims(gather_or_zero(rows, place), 0)


def _slice(weight, group):
    # Not weight[group]: XLA compiles that anew for every group.
    return tf.slice(weight, [group] + [0] * (weight.shape.rank - 1), [1, *weight.shape[1:]])


def _with_spare_row(rows):
    """One more row at the end, to be written where a chunk has no row."""
    return tf.pad(rows, [[0, 1], [0, 0]])


def _put(buffer, place, values):
    index = tf.where(place < 0, tf.shape(buffer)[0] - 1, place)
    return tf.tensor_scatter_nd_update(buffer, tf.expand_dims(index, -1), tf.squeeze(values, 0))
