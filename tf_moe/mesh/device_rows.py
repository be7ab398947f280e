"""Moving each device's rows by gathers in both directions. See `ops/rows.py`; here every device moves its own.

Legend: (N, R) devices, I rows of x a device, O rows of the result a device, K choices, D width.
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


def take_rows(x: tf.Tensor, source: tf.Tensor, slots: tf.Tensor) -> tf.Tensor:
    """`(N, R, I, D)` -> `(N, R, O, D)`: row o is row `source[o]` of x. The gradient is a gather too.

    Args:
        x: `(N, R, I, D)`.
        source: Int32 `(N, R, O)`; a value outside 0..I-1 leaves zeros.
        slots: Int32 `(N, R, I, K)`, the inverse: the K rows of the result that hold each row of x; outside is none.
    """

    @tf.custom_gradient
    def take(x):
        def gradient(d):
            return tf.reduce_sum(gather_or_zero(d, slots), axis=3)

        return gather_or_zero(x, source), gradient

    return take(x)


def sum_rows(rows: tf.Tensor, weights: tf.Tensor, source: tf.Tensor, slots: tf.Tensor) -> tf.Tensor:
    """Weighted sum of each token's rows, in float32.

    Args:
        rows: `(N, R, O, D)`.
        weights: Float32 `(N, R, I, K)`.
        source: Int32 `(N, R, O)`, the assignment i * K + k that reads each row; outside is none.
        slots: Int32 `(N, R, I, K)`, the row of each assignment; outside adds nothing.

    Returns:
        Float32 `(N, R, I, D)`.
    """
    choices = slots.shape[-1]

    @tf.custom_gradient
    def combine(rows, weights):
        taken = tf.cast(gather_or_zero(rows, slots), tf.float32)  # (N, R, I, K, D)

        def gradient(dy):
            flat = tf.reshape(weights, [*weights.shape[:2], weights.shape[2] * choices])
            row_weight = tf.expand_dims(gather_or_zero(flat, source), -1)
            d_rows = row_weight * gather_or_zero(dy, tf.math.floordiv(source, choices))
            return tf.cast(d_rows, rows.dtype), tf.einsum("nrid,nrikd->nrik", dy, taken)

        return tf.einsum("nrik,nrikd->nrid", weights, taken), gradient

    return combine(rows, weights)
