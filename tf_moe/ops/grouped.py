"""Applying a function with stacked weights to rows by group: group g's rows meet slice g.

Legend: S rows, G groups, C places a group, D width in, O width out.

Neither of the two obvious ways is good at all loads. A batched product over groups padded to the largest load collapses
when one group is hot; a loop over the groups has an overhead for every group. So: the first C rows of every group go
through one batched product, the block, and what the hot groups have beyond it goes through a loop, which makes as many
turns as the loads of the step need, often none. Nothing is dropped. With C = 0 the loop does everything, and groups
without rows cost nothing.

The loop has two forms. `HotGroups` takes each hot group's rows at once, exactly as many as there are, and the loads
choose C; rows stand where it needs them (see `BufferLayout`), so that nothing is moved. `Chunks` is for XLA: all its
shapes follow from S and G.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_moe.ops.block import from_block, make_block, to_block
from tf_moe.ops.chunks import Chunks
from tf_moe.ops.gradients import with_gradients
from tf_moe.ops.hot_groups import HotGroups
from tf_moe.ops.recompute import recomputed

Function = Callable[..., tf.Tensor]


def apply_grouped(
    function: Function,
    rows: tf.Tensor,
    counts: tf.Tensor,
    weights: Sequence[tf.Tensor],
    places: tf.Tensor | None = None,
    recompute: bool = False,
) -> tf.Tensor:
    """Apply `function` to rows by group, each group with its own slice of the weights.

    Args:
        function: `function(stack, *slices)` maps `(g, n, D)` and slices `(g, ...)` of the weights to `(g, n, O)` for
            any g and n, each row by itself, and maps zero rows to something finite. It draws nothing and has no side
            effects: for the rows in the loop it is called again in the backward pass.
        rows: `(S, D)`, as a `BufferLayout` says: C places for each group, empty ones zero, then what groups have beyond
            them, sorted by group. Without places, sorted by group; rows after the last group's are not looked at.
        counts: Int32 `(G,)` with G static, rows of each group.
        weights: Tensors `(G, ...)`.
        places: Int32 scalar C; None for rows that are sorted without a block, as under XLA.
        recompute: Whether nothing inside `function` is kept for the backward pass.

    Returns:
        `(S, O)`, arranged as the rows are. Where a row is empty, what the function makes of zeros; after the last
        group's rows, zero.
    """
    if places is None:
        return _apply_sorted(function, rows, counts, weights, recompute)
    in_block = recomputed(function) if recompute else function
    beyond = HotGroups(counts, places)
    held = counts.shape[0] * places

    @tf.custom_gradient
    def apply(rows, *weights):
        # By hand, so that the loop's gradients are added to the block's in place. The automatic gradient of a loop
        # would add a whole stack of weight gradients in every turn.
        def flat_block(block, *weights):
            output = in_block(block, *weights)
            return tf.reshape(output, [held, output.shape[-1]])

        block = tf.reshape(rows[:held], [counts.shape[0], places, rows.shape[-1]])
        output, gradients = with_gradients(flat_block, [block, *weights])

        def gradient(d_output):
            d_block, *d_weights = gradients(d_output[:held])
            d_block = tf.reshape(d_block, [held, rows.shape[-1]])
            return beyond.add_gradients(function, rows, weights, d_output, d_block, d_weights)

        return beyond.add_outputs(function, rows, weights, output), gradient

    return tf.ensure_shape(apply(rows, *weights), [rows.shape[0], None])


def _apply_sorted(function: Function, rows, counts, weights, recompute):
    in_block = recomputed(function) if recompute else function
    size = tf.shape(rows)[0]
    beyond = Chunks(counts, size)
    block = make_block(counts, size, beyond.places)

    @tf.custom_gradient
    def apply(rows, *weights):
        def of_block(rows, *weights):
            return from_block(in_block(to_block(rows, block), *weights), block)

        output, gradients = with_gradients(of_block, [rows, *weights])

        def gradient(d_output):
            d_rows, *d_weights = gradients(d_output)
            return beyond.add_gradients(function, rows, weights, d_output, d_rows, d_weights)

        return beyond.add_outputs(function, rows, weights, output), gradient

    return apply(rows, *weights)
