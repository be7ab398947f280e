"""How tokens move to experts and back: the part that all dispatchers share.

Legend: T tokens, K choices, E experts, S rows of the buffer, C capacity, D width.
"""

from typing import NamedTuple

import tensorflow as tf

from tf_moe.ops.rows import sum_rows, take_rows


class Plan(NamedTuple):
    """Which assignment stands in which row of the experts' buffer. Assignment t * K + k is choice k of token t.

    Attributes:
        assignment: Int32 `(S,)`, the assignment in each row; -1 where a row is empty.
        slot: Int32 `(T, K)`, the row of each assignment; -1 for one that has none, by its zero weight or dropped.
        counts: Int32 `(E,)`, rows that each expert uses.
        dropped: Int32 scalar, assignments that found no place.
        capacity: Rows of the buffer for each expert, the first `counts` of which it uses; None where the experts' rows
            follow one another without gaps.
        places: Int32 scalar C: the buffer begins with a block of C rows for each expert, and the rows of experts that
            have more follow it, sorted by expert. None where there is no block.

    Example:

    >>> index, weights = tf.constant([[1, 0], [1, 2]]), tf.constant([[0.75, 0.25], [0.5, 0.5]])
    >>> plan = tf_moe.dispatch.dispatch_sorted(index, weights, num_experts=3)
    >>> rows = plan.dispatch(tf.constant([[1.0], [10.0]]))  # of expert 0, 1, 1 and 2
    >>> rows.numpy().ravel()
    array([ 1.,  1., 10., 10.], dtype=float32)
    >>> plan.combine(rows, weights).numpy().ravel()  # with experts that do nothing
    array([ 1., 10.], dtype=float32)
    """

    assignment: tf.Tensor
    slot: tf.Tensor
    counts: tf.Tensor
    dropped: tf.Tensor
    capacity: int | tf.Tensor | None = None
    places: tf.Tensor | None = None

    @property
    def assigned(self) -> tf.Tensor:
        """Int32 scalar, assignments in all, the dropped ones included."""
        return tf.reduce_sum(self.counts) + self.dropped

    def dispatch(self, tokens: tf.Tensor) -> tf.Tensor:
        """Tokens `(T, D)` -> the experts' buffer `(S, D)`; empty rows are zero."""
        choices = tf.shape(self.slot)[1]
        token = tf.math.floordiv(self.assignment, choices)  # of none, -1, it is -1
        return take_rows(tokens, token, self.slot)

    def combine(self, outputs: tf.Tensor, combine_weights: tf.Tensor) -> tf.Tensor:
        """Buffer `(S, D)` and weights `(T, K)` -> float32 `(T, D)`, the weighted sum of each token's outputs."""
        return sum_rows(outputs, combine_weights, self.assignment, self.slot)
