"""Moving rows between the token order and the order of a buffer, by gathers in both directions.

Legend: T tokens, K slots a token, S rows of the buffer, D width.

The automatic gradient of a gather is a scatter: slower on every device, and on a mesh it collects the whole batch.
Where the inverse of the movement is known, as it is here, the gradient is a gather again.
"""

import tensorflow as tf


def take_rows(x: tf.Tensor, source: tf.Tensor, slot: tf.Tensor) -> tf.Tensor:
    """Fill a buffer with rows of x: `buffer[s] = x[source[s]]`.

    Args:
        x: `(T, D)`.
        source: Int32 `(S,)`, the row of x that buffer row s holds. A value outside 0..T-1 leaves zeros.
        slot: Int32 `(T, K)`, the inverse: the K buffer rows that hold row t of x. A value outside 0..S-1 is no row.

    Returns:
        `(S, D)`.
    """

    @tf.custom_gradient
    def take(x):
        def gradient(d_buffer):
            return tf.reduce_sum(_gather_most(d_buffer, slot), axis=1)

        return gather_or_zero(x, source), gradient

    return take(x)


def sum_rows(buffer: tf.Tensor, weights: tf.Tensor, source: tf.Tensor, slot: tf.Tensor) -> tf.Tensor:
    """Weighted sum of each token's buffer rows: `y[t] = sum_k weights[t, k] * buffer[slot[t, k]]`, in float32.

    Args:
        buffer: `(S, D)`.
        weights: Float32 `(T, K)`.
        source: Int32 `(S,)`, the inverse of `slot` over assignments: row s is read by assignment `source[s]`, which is
            `t * K + k`. A value outside 0..T*K-1 is a row that nobody reads.
        slot: Int32 `(T, K)`. A value outside 0..S-1 contributes nothing.

    Returns:
        Float32 `(T, D)`.
    """

    @tf.custom_gradient
    def combine(buffer, weights):
        rows = tf.cast(_gather_most(buffer, slot), tf.float32)  # (T, K, D)

        def gradient(dy):
            choices = tf.shape(slot)[1]
            row_weight = tf.expand_dims(gather_or_zero(tf.reshape(weights, [-1]), source), -1)  # (S, 1)
            d_buffer = row_weight * gather_or_zero(dy, tf.math.floordiv(source, choices))
            return tf.cast(d_buffer, buffer.dtype), tf.einsum("td,tkd->tk", dy, rows)

        return tf.einsum("tk,tkd->td", weights, rows), gradient

    return combine(buffer, weights)


def gather_or_zero(x: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Rows `x[index]`, zeros where an index is outside x. It has no gradient of its own: see the functions above."""
    # They read a row of zeros at the end of a copy: devices differ on what an index outside gives.
    size = tf.shape(x)[0]
    padded = tf.pad(x, [[0, 1], *[[0, 0]] * (x.shape.rank - 1)])
    return tf.gather(padded, tf.where(_inside(x, index), index, size))


def gather_or_none(index: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
    """`index[at]` of a list of numbers, -1 where `at` is -1."""
    return tf.where(at < 0, -1, gather_or_zero(index, at))


def _gather_most(x: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """The same, faster for a large x and indices that are often all inside it."""
    inside = tf.reduce_all(_inside(x, index))
    return tf.cond(inside, lambda: tf.gather(x, index), lambda: gather_or_zero(x, index))


def _inside(x, index):
    return tf.logical_and(index >= 0, index < tf.shape(x)[0])
