import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.ops.one_by_one import apply_one_by_one

D, H = 3, 4


def two_layers(x, first, bias, second):
    return tf.matmul(tf.tanh(tf.matmul(x, first) + tf.expand_dims(bias, 1)), second)


def by_rows(rows, counts, weights):
    """A row at a time in float64, zero for rows of no group."""
    first, bias, second = (w.astype("float64") for w in weights)
    output = np.zeros(rows.shape)
    for s, g in enumerate(np.repeat(np.arange(len(counts)), counts)):
        output[s] = np.tanh(rows[s].astype("float64") @ first[g] + bias[g]) @ second[g]
    return output


class OneByOneTest(TestCase):
    """S rows, G groups, D width, H hidden."""

    # Four groups each, and a number of rows; those after the last group's are of no group.
    SCENES = {
        "even": ([3, 3, 3, 3], 12),
        "one is hot": ([1, 90, 0, 5], 96),
        "one group has all": ([0, 0, 12, 0], 12),
        "rows of no group": ([2, 0, 1, 2], 12),
        "no rows of any": ([0, 0, 0, 0], 12),
    }

    def setUp(self):
        super().setUp()
        self.weights = [self.normal(4, D, H), self.normal(4, H), self.normal(4, H, D)]
        self.groups_at_once = set()

    def function(self, x, *slices):
        self.groups_at_once.update(int(t.shape[0]) for t in (x, *slices))
        return two_layers(x, *slices)

    def check(self, run):
        for name, (counts, size) in self.SCENES.items():
            with self.subTest(name):
                rows = self.normal(size, D)
                expected = by_rows(rows, counts, self.weights)
                rows[sum(counts) :] = np.nan
                self.assertAllClose(run(tf.constant(rows), tf.constant(counts)), expected, rtol=1e-4, atol=1e-4)
        self.assertEqual(self.groups_at_once, {1})

    def sorted(self, rows, counts):
        return apply_one_by_one(self.function, rows, counts, [tf.constant(w) for w in self.weights])

    def test_eager(self):
        self.check(self.sorted)

    def test_any_number_of_rows(self):
        run = tf.function(self.sorted, [tf.TensorSpec([None, D]), tf.TensorSpec([4], tf.int32)])
        self.check(run)
        self.assertEqual(run.get_concrete_function().output_shapes, [None, D])

    def test_xla(self):
        self.check(tf.function(self.sorted, jit_compile=True))

    def test_with_capacity(self):
        counts, capacity = [2, 0, 5, 1], 5
        rows = self.normal(4, capacity, D)
        expected = np.zeros(rows.shape)
        for g, count in enumerate(counts):
            of_group = [len(rows[g]) if n == g else 0 for n in range(4)]
            expected[g] = by_rows(rows[g], of_group, self.weights) if count else 0

        def run(capacity):
            flat = tf.constant(rows.reshape(-1, D))
            return apply_one_by_one(self.function, flat, tf.constant(counts), self.weights, capacity)

        for way in (run, tf.function(run, [tf.TensorSpec([], tf.int32)])):
            output = way(tf.constant(capacity))
            self.assertAllClose(output, expected.reshape(-1, D), rtol=1e-4, atol=1e-4)
        compiled = tf.function(lambda: run(capacity), jit_compile=True)()
        self.assertAllClose(compiled, expected.reshape(-1, D), rtol=1e-4, atol=1e-4)
        self.assertEqual(self.groups_at_once, {1})
