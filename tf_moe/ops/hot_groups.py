"""The loop of `grouped.py` over hot groups, each with exactly the rows it has beyond the block."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_moe.ops.gradients import gradients_of
from tf_moe.ops.slices import add_to_slice, owns_its_memory

# The cost of a step in rows of the block, measured on two CPU cores: a row in the loop is computed once more in the
# backward pass; a group, in the block or in the loop, has its weights to be read; a turn of the loop has its overhead.
_ROW_OF_LOOP, _GROUP, _TURN = 1.7, 32, 48


class HotGroups:
    """Rows beyond the block, those of hot groups.

    Args:
        counts: Int32 `(G,)`, rows of each group.
        places: Int32 scalar C, places of each group in the block.
    """

    def __init__(self, counts: tf.Tensor, places: tf.Tensor):
        self._group = tf.cast(tf.squeeze(tf.where(counts > places), -1), tf.int32)
        more = tf.gather(counts, self._group) - places
        self._stop = counts.shape[0] * places + tf.cumsum(more)
        self._start = self._stop - more
        self._turns = tf.size(self._group)

    def add_outputs(
        self, function: Callable[..., tf.Tensor], rows: tf.Tensor, weights: Sequence[tf.Tensor], output: tf.Tensor
    ) -> tf.Tensor:
        """`output` `(G * C, O)` of the block's rows, and after it that of the others."""

        def body(n, pieces):
            group, own = self._turn(n)
            values = function(_stack(rows[own]), *(_stack(w[group]) for w in weights))
            return n + 1, pieces.write(n, tf.squeeze(values, 0))

        def complete():
            _, pieces = self._loop(body, self._pieces(output))
            return self._join(output, pieces)

        return tf.cond(self._turns > 0, complete, lambda: output)

    def add_gradients(
        self,
        function: Callable[..., tf.Tensor],
        rows: tf.Tensor,
        weights: Sequence[tf.Tensor],
        d_output: tf.Tensor,
        d_block: tf.Tensor,
        d_weights: Sequence[tf.Tensor],
    ) -> list[tf.Tensor]:
        """Gradients of the block's rows `(G * C, D)` and of the weights, completed by those of the other rows."""
        in_place = [owns_its_memory(d) for d in d_weights]

        def body(n, pieces, *totals):
            group, own = self._turn(n)
            inputs = [_stack(x) for x in (rows[own], *(w[group] for w in weights))]
            gradients = gradients_of(function, inputs, _stack(d_output[own]))
            d_chunk, *d_slices = (tf.squeeze(d, 0) for d in gradients)
            groups = [group] * len(totals)
            totals = [add_to_slice(*each) for each in zip(totals, groups, d_slices, in_place, strict=True)]
            return n + 1, pieces.write(n, d_chunk), *totals

        def complete():
            _, pieces, *totals = self._loop(body, self._pieces(d_block), *d_weights)
            return [self._join(d_block, pieces), *totals]

        return tf.cond(self._turns > 0, complete, lambda: [d_block, *d_weights])

    def _loop(self, body, *variables):
        return tf.while_loop(lambda n, *_: n < self._turns, body, (0, *variables), parallel_iterations=1)

    def _turn(self, n):
        """The n-th hot group, and where its rows are. A slice of the leading axis is a view: nothing is copied."""
        return self._group[n], slice(self._start[n], self._stop[n])

    def _pieces(self, like):
        """An empty list with a place for the rows of each hot group."""
        shape = [None, *like.shape[1:]]
        return tf.TensorArray(like.dtype, self._turns, infer_shape=False, element_shape=shape)

    @staticmethod
    def _join(block, pieces):
        return tf.concat([block, pieces.concat()], 0)


def _stack(of_one):
    """(1, ...), as a function of groups takes it."""
    return tf.expand_dims(of_one, 0)


def cheapest_places(counts: tf.Tensor) -> tf.Tensor:
    """The number of places a group that makes a step with these loads cheapest; 0 for no block at all.

    Args:
        counts: Int32 `(G,)`, rows of each group.
    """
    loads = tf.cast(counts, tf.float32)
    mean, largest = tf.reduce_mean(loads), tf.reduce_max(loads)
    candidates = tf.minimum(tf.concat([mean * [0.0, 0.5, 0.75, 1.0, 1.125, 1.25, 1.5, 2.0], [largest]], 0), largest)
    candidates = tf.expand_dims(tf.math.ceil(candidates), -1)
    block = tf.where(candidates > 0, counts.shape[0] * (candidates + _GROUP), 0.0)
    rows = tf.reduce_sum(tf.maximum(loads - candidates, 0.0), axis=-1, keepdims=True)
    turns = tf.reduce_sum(tf.cast(loads > candidates, tf.float32), axis=-1, keepdims=True)
    cost = block + _ROW_OF_LOOP * rows + (_GROUP + _TURN) * turns
    best = tf.argmin(cost[:, 0], output_type=tf.int32)
    return tf.cast(tf.gather(candidates[:, 0], best), tf.int32)
