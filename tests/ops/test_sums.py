"""Sums by group against a loop."""

import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.mesh.helpers import Program, strategy_on
from tf_moe.mesh.shards import computed_where
from tf_moe.ops.sums import sum_by_group, sum_rows_by_group

G = 5


class SumsTest(TestCase):
    def check(self, function, values, index, expected):
        """On one device and on a mesh."""
        self.assertAllClose(function(tf.constant(values), tf.constant(index), G), expected, rtol=1e-5, atol=1e-5)
        strategy = strategy_on(2)
        with strategy.scope():
            weight = keras.Variable(0.0)

        def run(values, index):
            with computed_where(weight):
                return function(values, index, G)

        self.assertAllClose(Program(strategy, run)(values, index), expected, rtol=1e-5, atol=1e-5)

    def test_values(self):
        values, index = self.normal(8, 3), self.rng.integers(0, G - 1, (8, 3)).astype("int32")  # nothing for the last
        expected = np.zeros(G)
        for place in np.ndindex(8, 3):
            expected[index[place]] += values[place]
        self.check(sum_by_group, values, index, expected)

    def test_rows(self):
        rows, index = self.normal(12, 4), self.rng.integers(0, G + 1, 12).astype("int32")
        index[:2] = G  # rows of no group
        expected = np.zeros((G, 4))
        for row, group in zip(rows, index, strict=True):
            if group < G:
                expected[group] += row
        self.check(sum_rows_by_group, rows, index, expected)
