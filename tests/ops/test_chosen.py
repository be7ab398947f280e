"""What is added where; the rest is in `tests/mesh/test_choice.py`."""

from unittest import mock

import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.ops.chosen import add_at


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
