from unittest import mock

import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.mesh.helpers import Program, strategy_on
from tf_moe.mesh.shards import computed_where
from tf_moe.ops.chosen import add_at, read_at, top_k


class AddAtTest(TestCase):
    def test_against_a_loop(self):
        values, index = self.normal(6, 3), self.rng.integers(0, 4, (6, 3)).astype("int32")  # some twice in a row
        expected = np.zeros((6, 4))
        for t, k in np.ndindex(6, 3):
            expected[t, index[t, k]] += values[t, k]
        for form in (add_at, tf.function(add_at), tf.function(add_at, jit_compile=True)):
            self.assertAllClose(form(tf.constant(values), tf.constant(index), 4), expected)

    def test_more_cells_than_int32_can_number(self):
        """Which ones are added to: all of them would take 16 GB."""
        rows, size = 2**16, 2**16
        index = tf.fill([rows, 1], size - 1)
        with (
            mock.patch.object(tf.math, "unsorted_segment_sum", side_effect=MemoryError) as add,
            self.assertRaises(MemoryError),
        ):
            add_at(tf.ones([rows, 1]), index, size)
        _, cell, cells = add.call_args.args
        self.assertAllEqual(cell, np.arange(1, rows + 1) * size - 1)
        self.assertEqual(int(cells), rows * size)


class OnMeshTest(TestCase):
    def test_as_on_one_device(self):
        tokens, size, k = 8, 5, 3

        def choose(x, index, d_values, d_read):
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(x)
                values, best = top_k(x, k)
                read = read_at(x, index)
            d_top, d_x = tape.gradient(values, x, d_values), tape.gradient(read, x, d_read)
            return values, best, d_top, read, d_x, add_at(d_values, index, size)

        x = self.normal(tokens, size)
        x[0] = 1.0  # all equal
        index = self.rng.integers(0, size, (tokens, k)).astype("int32")  # some twice in a row
        arrays = x, index, self.normal(tokens, k), self.normal(tokens, k)

        strategy = strategy_on(2)
        with strategy.scope():
            weight = tf.Variable(0.0)

        def on_mesh(*arrays):
            with computed_where(weight):
                return choose(*arrays)

        program = Program(strategy, on_mesh)
        for ours, expected in zip(program(*arrays), choose(*map(tf.constant, arrays)), strict=True):
            self.assertAllClose(ours, tf.convert_to_tensor(expected))
        self.assertEqual(program.specs, [["expert", ""]] * 6)  # nothing was collected, the gradients least of all
