"""Applying a function with stacked weights to the rows of all devices of a mesh.

This is `grouped.py` in a form where shapes are static and every device does the same.

The first rows of every group on every device, as many as even loads need, are exchanged and computed at once. What hot
groups have beyond them goes through a loop of smaller rounds, as many as the largest load of the step needs, often
none. Nothing is dropped, and one program serves all loads.
"""

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_moe.mesh.device_groups import ShardedGroups
from tf_moe.mesh.move import Exchange, Stay
from tf_moe.mesh.windows import Window, make_window
from tf_moe.ops.gradients import gradients_of, with_gradients
from tf_moe.ops.recompute import recomputed
from tf_moe.ops.sum_dtype import sum_dtype


def apply_grouped_mesh(
    function: Callable[..., tf.Tensor],
    rows: tf.Tensor,
    groups: ShardedGroups,
    weights: Sequence[tf.Tensor],
    move: Exchange | Stay,
    capacity: int | None = None,
    recompute: bool = False,
) -> tf.Tensor:
    """Apply `function` to rows sorted by group on each device, each group with its own slice of the weights.

    Args:
        function: As in `apply_grouped`; under `Stay` its first argument is `(N, R, G, C, D)`.
        rows: `(N, R, M, D)`, sorted by group on each device.
        groups: How they are sorted.
        weights: Tensors `(G, ...)`.
        move: `Exchange` if the weights are split over the shards, `Stay` if every device has all of them.
        capacity: None to compute every row; else only the first `capacity` rows of a group on each device.
        recompute: Whether nothing inside `function` is kept for the backward pass.

    Returns:
        `(N, R, M, O)`, sorted as the rows are; zero for rows of no group and for those beyond `capacity`.
    """
    at_once, a_round = (capacity, None) if capacity is not None else sizes(rows.shape[2], groups.counts.shape[-1])
    block = make_window(groups, 0, at_once)
    in_block = recomputed(function) if recompute else function

    def loop(body, *variables):
        """Run body(window, *variables) for every round."""
        if a_round is None:
            return variables
        beyond = tf.maximum(tf.reduce_max(groups.counts) - at_once, 0)
        turns = tf.math.floordiv(beyond + a_round - 1, a_round)

        def turn(n, *variables):
            return n + 1, *body(make_window(groups, at_once + n * a_round, a_round), *variables)

        return tf.while_loop(lambda n, *_: n < turns, turn, (tf.constant(0), *variables))[1:]

    @tf.custom_gradient
    def apply(rows, *weights):
        moved = move.there(block.fill(rows))
        computed, gradients = with_gradients(in_block, [moved, *weights])

        def add_output(window: Window, output):
            return (output + window.read(move.back(function(move.there(window.fill(rows)), *weights), window)),)

        def gradient(d_output):
            def add_gradients(window: Window, d_rows, *d_weights):
                inputs = [move.there(window.fill(rows)), *weights]
                d_moved, *more = gradients_of(function, inputs, move.there(window.fill(d_output)))
                d_weights = [d + tf.cast(m, d.dtype) for d, m in zip(d_weights, more, strict=True)]
                return d_rows + window.read(move.back(d_moved, window)), *d_weights

            d_moved, *d_weights = gradients(move.there(block.fill(d_output)))
            sums = [tf.cast(d, sum_dtype(d.dtype)) for d in d_weights]
            d_rows, *sums = loop(add_gradients, block.read(move.back(d_moved, block)), *sums)
            return d_rows, *(tf.cast(d, w.dtype) for d, w in zip(sums, weights, strict=True))

        return loop(add_output, block.read(move.back(computed, block)))[0], gradient

    return apply(rows, *weights)


def sizes(rows: int, groups: int) -> tuple[int, int]:
    """Places a group has on each device in the block, and in each round of the loop.

    The block has room for even loads and two standard deviations, the paper's balanced gates seldom exceed it by much;
    a round is a quarter of that. Both are whole numbers of 8, which vector units like.
    """
    mean = rows / groups
    block = min(_up(mean + 2 * math.sqrt(mean)), rows)
    return block, min(_up(block / 4), rows)


def _up(size: float) -> int:
    return max(8, 8 * math.ceil(size / 8))
