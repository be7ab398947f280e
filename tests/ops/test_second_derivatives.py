"""Gradients of gradients, as a penalty on them has: through the block, and through the loop of what is beyond it."""

import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.ops.grouped import apply_grouped

COUNTS, D, H = [5, 1, 0, 3], 3, 4


def experts(x, first, second):
    return tf.matmul(tf.tanh(tf.matmul(x, first)), second)


def penalty(function, rows, *weights):
    """The gradients of |dy/dx|^2 to rows and weights."""
    with tf.GradientTape() as outer:
        outer.watch([rows, *weights])
        with tf.GradientTape() as inner:
            inner.watch(rows)
            y = tf.reduce_sum(function(rows, *weights) ** 2)
        d = tf.reduce_sum(tf.convert_to_tensor(inner.gradient(y, rows)) ** 2)
    return [tf.convert_to_tensor(each) for each in outer.gradient(d, [rows, *weights])]


class SecondDerivativesTest(TestCase):
    @parameterized.product(graph=(False, True), recompute=(False, True))
    def test_of_rows_and_weights(self, graph, recompute):
        group = tf.repeat(tf.range(4), COUNTS)
        rows = tf.constant(self.normal(len(group), D), tf.float64)
        weights = [tf.constant(self.normal(4, *shape), tf.float64) for shape in ((D, H), (H, D))]

        def row_by_row(rows, *weights):
            return tf.squeeze(experts(tf.expand_dims(rows, 1), *(tf.gather(w, group) for w in weights)), 1)

        def by_loop(rows, *weights):
            return apply_grouped(experts, rows, tf.constant(COUNTS), weights, tf.constant(0), recompute)

        expected = penalty(row_by_row, rows, *weights)
        ask = tf.function(penalty, autograph=False) if graph else penalty
        for ours, want in zip(ask(by_loop, rows, *weights), expected, strict=True):
            self.assertAllClose(ours, want)

        # Two places each: the rows of the block, some of them empty, then the others.
        places = [0, 1, 5, -1, -1, -1, 6, 7, 2, 3, 4, 8]
        held = [n for n, row in enumerate(places) if row >= 0]
        order = [places[n] for n in held]

        def by_block(rows, *weights):
            buffer = tf.scatter_nd([[n] for n in held], tf.gather(rows, order), [len(places), D])
            return apply_grouped(experts, buffer, tf.constant(COUNTS), weights, tf.constant(2), recompute)

        for ours, want in zip(ask(by_block, rows, *weights), expected, strict=True):
            self.assertAllClose(ours, want)
