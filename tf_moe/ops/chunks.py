"""The loop of `grouped.py` for XLA: chunks of a fixed number of rows, shapes that follow from S and G alone."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_moe.ops.gradients import gradients_of
from tf_moe.ops.sum_dtype import sum_dtype


class Chunks:
    """Rows beyond a block of fixed size, in chunks: a chunk is up to `chunk_rows` rows of one group.

    Args:
        counts: Int32 `(G,)`, rows of each group.
        size: Int32 scalar, number of rows S.
        with_block: Whether there is a block. Default True. Without one, chunks are as large as its places for a group
            would be, so that most groups are one chunk.

    Attributes:
        places: Int32 scalar, places of each group in the block: two standard deviations of evenly random
            loads over their mean. XLA folds it to a constant, since it knows S when it compiles.
    """

    def __init__(self, counts: tf.Tensor, size: tf.Tensor, with_block: bool = True):
        mean = tf.cast(size, tf.float32) / counts.shape[0]
        fitting = tf.where(mean >= 2, tf.cast(tf.round(mean + 2 * tf.sqrt(mean)), tf.int32), 0)
        self.places = fitting if with_block else tf.constant(0)
        self._chunk_rows = tf.maximum(8, fitting // 4 if with_block else fitting)
        beyond = tf.maximum(counts - self.places, 0)
        self._up_to = tf.cumsum(tf.math.floordiv(beyond + self._chunk_rows - 1, self._chunk_rows))
        self._starts, self._counts = tf.cumsum(counts, exclusive=True), counts

    def add_outputs(
        self, function: Callable[..., tf.Tensor], rows: tf.Tensor, weights: Sequence[tf.Tensor], output: tf.Tensor
    ) -> tf.Tensor:
        """`output` `(S, O)` of the block's rows, completed by that of the others."""
        rows = _with_one_more(rows)

        def body(n, output):
            group, place = self._chunk(n)
            values = function(_take(rows, place), *(_slice(w, group) for w in weights))
            return n + 1, _put(output, place, values)

        _, output = self._loop(body, output)
        return output[:-1]

    def add_gradients(
        self,
        function: Callable[..., tf.Tensor],
        rows: tf.Tensor,
        weights: Sequence[tf.Tensor],
        d_output: tf.Tensor,
        d_rows: tf.Tensor,
        d_weights: Sequence[tf.Tensor],
    ) -> list[tf.Tensor]:
        """Gradients of the block's rows and the weights, completed by those of the others."""
        rows, d_output = _with_one_more(rows), _with_one_more(d_output)

        def body(n, d_rows, *d_weights):
            group, place = self._chunk(n)
            inputs = [_take(rows, place), *(_slice(w, group) for w in weights)]
            d_chunk, *d_slices = gradients_of(function, inputs, _take(d_output, place))
            at = tf.reshape(group, [1, 1])
            d_slices = [tf.cast(s, d.dtype) for d, s in zip(d_weights, d_slices, strict=True)]
            d_weights = [tf.tensor_scatter_nd_add(d, at, s) for d, s in zip(d_weights, d_slices, strict=True)]
            return n + 1, _put(d_rows, place, d_chunk), *d_weights

        sums = [tf.cast(d, sum_dtype(d.dtype)) for d in d_weights]
        _, d_rows, *sums = self._loop(body, d_rows, *sums)
        return [d_rows[:-1], *(tf.cast(d, w.dtype) for d, w in zip(sums, weights, strict=True))]

    def _loop(self, body, rows, *others):
        """Run body for every chunk; the rows get one more at their end."""
        start = (0, _with_one_more(rows), *others)
        return tf.while_loop(lambda n, *_: n < self._up_to[-1], body, start)

    def _chunk(self, n):
        """The group of chunk n and the places of its rows, (chunk_rows,), -1 after its last."""
        group = tf.searchsorted(self._up_to, tf.expand_dims(n, 0), side="right")[0]
        before = tf.where(group > 0, tf.gather(self._up_to, tf.maximum(group - 1, 0)), 0)
        position = self.places + (n - before) * self._chunk_rows + tf.range(self._chunk_rows)
        place = tf.gather(self._starts, group) + position
        return group, tf.where(position < tf.gather(self._counts, group), place, -1)


def _with_one_more(rows):
    """`(S + 1, D)`: the last is read, and written, where a chunk has no row."""
    return tf.pad(rows, [[0, 1], [0, 0]])


def _take(rows, place):
    return tf.expand_dims(tf.gather(rows, _or_last(rows, place)), 0)


def _slice(weight, group):
    # Not a slice: where it begins would be a constant of the program, and every routing compiled anew.
    return tf.gather(weight, tf.reshape(group, [1]))


def _put(buffer, place, values):
    index = tf.expand_dims(_or_last(buffer, place), -1)
    return tf.tensor_scatter_nd_update(buffer, index, tf.squeeze(values, 0))


def _or_last(rows, place):
    return tf.where(place < 0, tf.shape(rows)[0] - 1, place)
