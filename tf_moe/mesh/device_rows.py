"""Moving each device's rows by gathers in both directions. See `ops/rows.py`; here every device moves its own.

Legend: (N, R) devices, I rows of x a device, O rows of the buffer a device, K slots a row of x, D width.
"""

import tensorflow as tf


def gather_or_zero(x: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Rows of x `(N, R, I, ...)` at `index` `(N, R, ...)`, zeros where that is outside 0..I-1. It has no gradient."""
    size = x.shape[2]
    inside = tf.logical_and(index >= 0, index < size)
    rows = tf.gather(x, tf.clip_by_value(index, 0, size - 1), batch_dims=2, axis=2)
    for _ in range(rows.shape.rank - inside.shape.rank):
        inside = tf.expand_dims(inside, -1)
    return tf.where(inside, rows, tf.zeros_like(rows))


def take_rows(x: tf.Tensor, source: tf.Tensor, slot: tf.Tensor) -> tf.Tensor:
    """Fill each device's buffer with rows of its x: `buffer[o] = x[source[o]]`. The gradient is a gather too.

    Args:
        x: `(N, R, I, D)`.
        source: Int32 `(N, R, O)`, the row of x that buffer row o holds. A value outside 0..I-1 leaves zeros.
        slot: Int32 `(N, R, I, K)`, the inverse: the K buffer rows that hold each row of x; outside 0..O-1 is none.

    Returns:
        `(N, R, O, D)`.
    """

    @tf.custom_gradient
    def take(x):
        def gradient(d_buffer):
            return tf.reduce_sum(gather_or_zero(d_buffer, slot), axis=3)

        return gather_or_zero(x, source), gradient

    return take(x)


def sum_rows(buffer: tf.Tensor, weights: tf.Tensor, source: tf.Tensor, slot: tf.Tensor) -> tf.Tensor:
    """Weighted sum of each token's buffer rows, in float32.

    Args:
        buffer: `(N, R, O, D)`.
        weights: Float32 `(N, R, I, K)`.
        source: Int32 `(N, R, O)`, the assignment i * K + k that reads each row; outside 0..I*K-1 is none.
        slot: Int32 `(N, R, I, K)`, the row of each assignment; outside 0..O-1 adds nothing.

    Returns:
        Float32 `(N, R, I, D)`.
    """
    choices = slot.shape[-1]

    @tf.custom_gradient
    def combine(buffer, weights):
        rows = tf.cast(gather_or_zero(buffer, slot), tf.float32)  # (N, R, I, K, D)

        def gradient(dy):
            flat = tf.reshape(weights, [*weights.shape[:2], weights.shape[2] * choices])
            row_weight = tf.expand_dims(gather_or_zero(flat, source), -1)
            d_buffer = row_weight * gather_or_zero(dy, tf.math.floordiv(source, choices))
            return tf.cast(d_buffer, buffer.dtype), tf.einsum("nrid,nrikd->nrik", dy, rows)

        return tf.einsum("nrik,nrikd->nrid", weights, rows), gradient

    return combine(buffer, weights)
