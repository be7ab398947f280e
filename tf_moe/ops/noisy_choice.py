"""Noisy top-k choice and its load estimate, a few rows at a time, so that what lies between stays in the cache.

Written out over whole matrices `(T, E)` the noise, its deviation, the noisy logits, the probabilities and their
derivatives are some forty passes through memory, which with thousands of experts take as long as the gate's products.
"""

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_moe.ops.chosen_probability import SMALLEST_STDDEV, probability_above
from tf_moe.ops.noise import ROWS_OF_A_DRAW, Noise
from tf_moe.ops.slices import write_rows
from tf_moe.ops.top_k import top_k_indices

# Numbers of a matrix that are worked on at a time: a megabyte. A quarter and four times that take as long.
_PART = 2**18
_DENSITY_AT_0 = 1 / math.sqrt(2 * math.pi)


def noisy_top_k(
    clean_logits: tf.Tensor, noise_logits: tf.Tensor, noise: Noise, k: int, mask: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The k experts with the highest noisy logits, and the smooth estimate of the load.

    The noise has standard deviation softplus of `noise_logits`. Only the arguments are kept for the backward
    pass, which computes the rest again.

    Args:
        clean_logits: `(T, E)`.
        noise_logits: `(T, E)`.
        noise: Of which the standard normal numbers come.
        k: Number of experts chosen, below E.
        mask: Optional bool `(T,)`; the others count nothing in the load.

    Returns:
        index: Int32 `(T, k)`, best first.
        noisy_logits: Of these, `(T, k)`.
        load: `(E,)`, for each expert the sum over the tokens of its probability to be among the k if its own noise were
            drawn again.

    Reference: section 2.1 and appendix A of Shazeer et al. (2017).
    """
    weight = tf.ones([tf.shape(clean_logits)[0], 1]) if mask is None else tf.expand_dims(tf.cast(mask, tf.float32), -1)
    index, drawn, clean, noise_logits, load = _choose(clean_logits, noise_logits, noise, k, weight)
    stddev = tf.math.softplus(noise_logits)
    highest = clean + drawn * stddev
    # Those that were not chosen are compared with the worst that was, and the chosen with the best that was not.
    best_outside = highest[:, k:]
    probability = weight * probability_above(best_outside, clean[:, :k], stddev[:, :k])
    load += tf.math.unsorted_segment_sum(probability, index[:, :k], clean_logits.shape[-1])
    return index[:, :k], highest[:, :k], load


def _choose(clean_logits, noise_logits, noise, k, weight):
    """What is dense in `noisy_top_k`, with one hand-written gradient for all of it. The weight is `(T, 1)`.

    Returns:
        index: Int32 `(T, k + 1)`, of the largest noisy logits.
        drawn, clean, noise_logits: What these are made of, `(T, k + 1)`.
        load: `(E,)`, that of the tokens for which an expert was not chosen.
    """
    num_experts = clean_logits.shape[-1]

    @tf.custom_gradient
    def choose(clean_logits, noise_logits):
        def choose_part(start, clean, noise_logits, weight):
            stddev = tf.math.softplus(noise_logits)
            drawn = noise.rows(start, tf.shape(clean)[0], num_experts)
            noisy = clean + drawn * stddev
            index = top_k_indices(noisy, k + 1)
            worst_inside = tf.gather(noisy, index[:, k - 1 : k], batch_dims=1)
            probability = probability_above(worst_inside, clean, stddev)
            probability = _clear_at(probability, index[:, :k])
            load = tf.matmul(weight, probability, transpose_a=True)
            return [index, *(tf.gather(x, index, batch_dims=1) for x in (drawn, clean, noise_logits))], [load]

        columns = [tf.TensorSpec([None, k + 1], dtype) for dtype in (tf.int32, tf.float32, tf.float32, tf.float32)]
        # Without gradient: an eager tape would keep all that lies between.
        logits = [tf.stop_gradient(x) for x in (clean_logits, noise_logits)]
        chosen, (load,) = _by_rows(choose_part, [*logits, weight], columns, [num_experts])
        index, drawn = chosen[:2]

        def gradient(_d_index, _d_drawn, d_clean, d_noise_logits, d_load):
            def differentiate(_, clean, noise_logits, index, drawn, d_clean, d_noise_logits, weight):
                of_last = [tf.gather(x, index[:, k - 1 : k], batch_dims=1) for x in (clean, noise_logits)]
                drawn_of_last = drawn[:, k - 1 : k]
                worst_inside = of_last[0] + drawn_of_last * tf.math.softplus(of_last[1])
                stddev = tf.math.softplus(noise_logits)
                precision = tf.math.reciprocal(tf.maximum(stddev, SMALLEST_STDDEV))
                distance = (worst_inside - clean) * precision
                by_clean = tf.exp(-0.5 * tf.square(distance)) * precision * (d_load * _DENSITY_AT_0)
                by_clean = _clear_at(by_clean * weight, index[:, :k])
                moves = tf.where(stddev > SMALLEST_STDDEV, tf.sigmoid(noise_logits), 0.0)
                # Where logits are huge the distance is infinite and the density 0.
                by_noise_logits = tf.math.multiply_no_nan(distance, by_clean) * moves
                # The worst of the chosen is a noisy logit itself.
                last = -tf.reduce_sum(by_clean, axis=-1, keepdims=True)
                d_clean += _at_last(last, k)
                d_noise_logits += _at_last(last * drawn_of_last * tf.sigmoid(of_last[1]), k)
                return [_add_at(by_clean, index, d_clean), _add_at(by_noise_logits, index, d_noise_logits)], []

            rows = [clean_logits, noise_logits, index, drawn, d_clean, d_noise_logits, weight]
            return _by_rows(differentiate, rows, [tf.TensorSpec([None, num_experts])] * 2, [])[0]

        return (*chosen, load), gradient

    return choose(clean_logits, noise_logits)


def _at_last(values, k):
    """`(T, 1)` as the column k - 1 of `(T, k + 1)`."""
    return tf.pad(values, [[0, 0], [k - 1, 1]])


def _add_at(rows, index, values):
    """Rows `(T, E)` with values `(T, K)` added at `index` `(T, K)`."""
    return tf.tensor_scatter_nd_add(rows, _cells(index), values)


def _clear_at(rows, index):
    """Rows `(T, E)` with zeros at `index` `(T, K)`."""
    return tf.tensor_scatter_nd_update(rows, _cells(index), tf.zeros(tf.shape(index)))


def _cells(index):
    token = tf.broadcast_to(tf.expand_dims(tf.range(tf.shape(index)[0]), -1), tf.shape(index))
    return tf.stack([token, index], axis=-1)


def _by_rows(
    function: Callable, inputs: Sequence[tf.Tensor], of_rows: Sequence[tf.TensorSpec], sizes_of_sums: Sequence[int]
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Apply a function to a few rows of matrices at a time.

    Args:
        function: Of the number of the first row, and of rows of each input; it returns a list of what belongs to each
            row, and a list of `(1, S)` that are to be summed.
        inputs: Each `(T, ...)`.
        of_rows: Dtype and trailing shape of each result that has a row for each input row.
        sizes_of_sums: S of each of the second list.

    Returns:
        Both lists for all rows: `(T, ...)` and `(S,)`.
    """
    num_rows, width = tf.shape(inputs[0])[0], inputs[0].shape[-1]
    # A GPU has the memory to do all at once, and would wait for each part to begin.
    part = (2**30 if tf.config.list_physical_devices("GPU") else _PART) // width
    part = -(-max(1, part) // ROWS_OF_A_DRAW) * ROWS_OF_A_DRAW
    shapes = [tf.concat([[num_rows], spec.shape[1:]], 0) for spec in of_rows]
    # Not tf.zeros, which may be a constant; and not left as they are, where a NaN may be: check_numerics stops at it.
    buffers = [
        tf.raw_ops.Empty(shape=shape, dtype=spec.dtype, init=True) for shape, spec in zip(shapes, of_rows, strict=True)
    ]
    sums = [tf.zeros([1, size]) for size in sizes_of_sums]

    def body(start, buffers, sums):
        rows, added = function(start, *(x[start : start + part] for x in inputs))
        buffers = [write_rows(buffer, start, value) for buffer, value in zip(buffers, rows, strict=True)]
        return start + part, buffers, [total + value for total, value in zip(sums, added, strict=True)]

    _, buffers, sums = tf.while_loop(lambda start, *_: start < num_rows, body, (0, buffers, sums))
    shapes = [[inputs[0].shape[0], *spec.shape[1:]] for spec in of_rows]  # T too, where it is known
    rows = [tf.ensure_shape(buffer, shape) for buffer, shape in zip(buffers, shapes, strict=True)]
    return rows, [tf.squeeze(total, 0) for total in sums]
