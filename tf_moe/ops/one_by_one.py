"""Applying a function with stacked weights to rows by group, as `grouped.py`, but to one group at a time.

Legend: S rows, G groups, C places a group, D width.

For functions that make something large of a group's weights, such as floats of 8-bit integers: it is there for one
group at a time, never for all of them, and not at all for groups without rows. Forward only: a gradient would keep what
was made for every group.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_moe.ops.chunks import Chunks
from tf_moe.ops.hot_groups import HotGroups
from tf_moe.ops.xla import compiled_by_xla


def apply_one_by_one(
    function: Callable[..., tf.Tensor],
    rows: tf.Tensor,
    counts: tf.Tensor,
    weights: Sequence[tf.Tensor],
    capacity: int | tf.Tensor | None = None,
) -> tf.Tensor:
    """Apply `function` to rows by group, each group with its own slice of the weights.

    Args:
        function: `function(stack, *slices)` maps `(1, n, D)` and slices `(1, ...)` of the weights to `(1, n, D)`, each
            row by itself.
        rows: `(S, D)`, sorted by group, rows after the last group's are not looked at; or `(G * C, D)`, C for each.
        counts: Int32 `(G,)` with G static, rows of each group.
        weights: Tensors `(G, ...)`.
        capacity: C; None for rows that are sorted without gaps.

    Returns:
        Of the shape of the rows. After the last group's rows, and in all of a group without rows, zero.
    """
    if capacity is not None:
        return _apply_with_capacity(function, rows, counts, weights, capacity)
    if compiled_by_xla():
        chunks = Chunks(counts, tf.shape(rows)[0], with_block=False)
        return chunks.add_outputs(function, rows, weights, tf.zeros_like(rows))
    output = HotGroups(counts, tf.constant(0)).add_outputs(function, rows, weights, rows[:0])
    output = tf.pad(output, [[0, tf.shape(rows)[0] - tf.shape(output)[0]], [0, 0]])
    return tf.ensure_shape(output, rows.shape)


def _apply_with_capacity(function, rows, counts, weights, capacity):
    groups, width = counts.shape[0], rows.shape[-1]
    stack = tf.reshape(rows, [groups, capacity, width])

    def body(n, outputs):
        at = tf.reshape(n, [1])
        inputs = tf.gather(stack, at)

        def values():
            return function(inputs, *(tf.gather(w, at) for w in weights))

        output = tf.cond(counts[n] > 0, values, lambda: tf.zeros_like(inputs))
        return n + 1, outputs.write(n, output[0])

    outputs = tf.TensorArray(rows.dtype, groups, element_shape=stack.shape[1:])
    _, outputs = tf.while_loop(lambda n, _: n < groups, body, (0, outputs), parallel_iterations=1)
    return tf.reshape(outputs.stack(), tf.shape(rows))
