"""Keeping tokens with a NaN or an infinity away from what is summed over all tokens."""

from typing import NamedTuple

import tensorflow as tf

from tf_moe.ops.masks import mask_rows

# A token whose features add up to more than this would overflow in float32, which the gate has under any dtype policy,
# as soon as it meets weights.
_LARGEST = 1e35


class Screen(NamedTuple):
    """Which of T tokens are valid: those that are neither masked nor non-finite.

    One NaN among them would be in the sum of every statistic, and 0 * NaN in every gradient of a kernel.

    Attributes:
        valid: Bool `(T,)`.
        mask: Bool `(T,)` as the user gave it, or None.
    """

    valid: tf.Tensor
    mask: tf.Tensor | None

    def clear(self, rows: tf.Tensor) -> tf.Tensor:
        """Rows `(T, D)` with zeros where a token is not valid."""
        return mask_rows(rows, self.valid)

    def fill(self, rows: tf.Tensor) -> tf.Tensor:
        """Rows `(T, D)` with zeros where a token is masked, and NaN where it is non-finite."""
        fine = self.valid if self.mask is None else tf.logical_or(self.valid, tf.logical_not(self.mask))
        # Not a constant, nor anything else that is there without need: tf.debugging.enable_check_numerics stops at it.
        instead = tf.zeros([], rows.dtype) / tf.cast(fine, rows.dtype)
        return tf.where(tf.expand_dims(self.valid, -1), rows, tf.expand_dims(instead, -1))

    def nonfinite_fraction(self) -> tf.Tensor:
        """Share of the unmasked tokens that are non-finite, a float32 scalar; 0 where all are masked."""
        mask = tf.ones_like(self.valid) if self.mask is None else self.mask
        unmasked, left = (tf.reduce_sum(tf.cast(x, tf.float32)) for x in (mask, self.valid))
        return tf.math.divide_no_nan(unmasked - left, unmasked)


def screen(tokens: tf.Tensor, mask: tf.Tensor | None = None) -> Screen:
    """Find the valid tokens.

    Args:
        tokens: Floating point `(T, D)`.
        mask: Bool `(T,)`, or None.

    Returns:
        A `Screen`, without gradient.
    """
    magnitude = tf.reduce_sum(tf.abs(tf.cast(tf.stop_gradient(tokens), tf.float32)), axis=-1)
    finite = magnitude < _LARGEST  # which NaN is not
    return Screen(finite if mask is None else finite & mask, mask)
