"""Applying a function with stacked weights to rows that are sorted by group: group g's rows meet slice g.

Legend: S rows, G groups, C places a group, D width in, O width out.

No one way is best at all loads. A batched product over groups padded to the largest load is the fastest while loads are
nearly even, and collapses when one group is hot. A loop over the groups that have rows, each with just its own, costs
the same at any loads, but has an overhead for every group. So the loads of each step choose. XLA can have neither,
since their shapes depend on the loads: there a block of a fixed size and a loop over fixed chunks do the same work.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_moe.ops.block import from_block, make_block, to_block
from tf_moe.ops.grouped_loop import loop_groups
from tf_moe.ops.grouped_static import block_and_chunks
from tf_moe.ops.recompute import recompute as keep_nothing
from tf_moe.ops.xla import compiled_by_xla

# Measured on two CPU cores: below this much padding the batched product wins over the loop.
_MOST_PADDING = 1.5
# Fewer rows a group than this, and reading all the weights for a batched product costs more than looping.
_FEWEST_ROWS = 2

Function = Callable[..., tf.Tensor]


def apply_grouped(
    function: Function,
    rows: tf.Tensor,
    counts: tf.Tensor,
    weights: Sequence[tf.Tensor],
    recompute: bool = False,
) -> tf.Tensor:
    """Apply `function` to rows sorted by group, each group with its own slice of the weights.

    Args:
        function: `function(stack, *slices)` maps `(g, n, D)` and slices `(g, ...)` of the weights to `(g, n, O)` for
            any g and n, each row by itself, and maps zero rows to something finite. It draws nothing and has no side
            effects: it may be called again in the backward pass.
        rows: `(S, D)`, sorted by group; rows after the last group's are not looked at.
        counts: Int32 `(G,)` with G static, rows of each group; they sum to at most S.
        weights: Tensors `(G, ...)`.
        recompute: Whether nothing inside `function` is kept for the backward pass.

    Returns:
        `(S, O)`, sorted as the rows are; zero after the last group's rows.
    """
    batched = keep_nothing(function) if recompute else function
    if compiled_by_xla():
        return block_and_chunks(function, batched, rows, counts, weights)
    size, num_groups = tf.shape(rows)[0], counts.shape[0]
    largest = tf.reduce_max(counts)
    places = tf.cast(largest, tf.float32) * num_groups
    even = tf.logical_and(places <= _MOST_PADDING * tf.cast(size, tf.float32), size >= _FEWEST_ROWS * num_groups)

    def padded():
        block = make_block(counts, size, largest)
        return from_block(batched(to_block(rows, block), *weights), block)

    return tf.cond(tf.logical_or(even, size == 0), padded, lambda: loop_groups(function, rows, counts, weights))
