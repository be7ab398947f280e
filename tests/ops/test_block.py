import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.base import TestCase
from tf_moe.ops.block import from_block, make_block, to_block


def block_by_loop(counts, size, capacity):
    row, place = np.full((len(counts), capacity), -1), np.full(size, -1)
    s = 0
    for g, count in enumerate(counts):
        for c in range(count):
            if c < capacity:
                row[g, c], place[s] = s, g * capacity + c
            s += 1
    return row, place


def move_by_loop(rows, row):
    """Rows (S, D) to the places of (G, C) row."""
    block = np.zeros((*row.shape, rows.shape[-1]))
    for at in np.ndindex(*row.shape):
        if row[at] >= 0:
            block[at] = rows[row[at]]
    return block


class BlockTest(TestCase):
    """S rows, G groups, C places a group."""

    def test_a_scene(self):
        # Rows 0 and 1 are of group 0, none of group 1, 2 to 4 of group 2, 5 and 6 of none. Row 4 finds no place.
        block = make_block(tf.constant([2, 0, 3]), 7, 2)
        self.assertAllEqual(block.row, [[0, 1], [-1, -1], [2, 3]])
        self.assertAllEqual(block.place, [0, 1, 4, 5, -1, -1, -1])
        rows = tf.constant([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [7.0]])
        values = to_block(rows, block)
        self.assertAllEqual(values, [[[1.0], [2.0]], [[0.0], [0.0]], [[3.0], [4.0]]])
        self.assertAllEqual(from_block(10 * values + 1, block), [[11.0], [21.0], [31.0], [41.0], [0.0], [0.0], [0.0]])

    def test_against_loops(self):
        @settings(max_examples=20, deadline=None)
        @given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 3), st.integers(1, 6))
        def check(counts, rest, capacity):
            size = sum(counts) + rest
            row, place = block_by_loop(counts, size, capacity)
            block = make_block(tf.constant(counts), size, capacity)
            self.assertAllEqual(block.row, row)
            self.assertAllEqual(block.place, place)
            rows, values = self.normal(size, 2), self.normal(len(counts), capacity, 2)
            self.assertAllEqual(to_block(tf.constant(rows), block), move_by_loop(rows, row))
            read = np.array([values.reshape(-1, 2)[p] if p >= 0 else [0, 0] for p in place]).reshape(size, 2)
            self.assertAllEqual(from_block(tf.constant(values), block), read)

        check()

    def test_capacity_zero_holds_nothing(self):
        block = make_block(tf.constant([2, 1]), 4, 0)
        self.assertAllEqual(block.row, np.zeros((2, 0)))
        self.assertAllEqual(block.place, [-1] * 4)
        self.assertAllEqual(to_block(tf.ones([4, 3]), block), np.zeros((2, 0, 3)))
        for read in (from_block, tf.function(from_block), tf.function(from_block, jit_compile=True)):
            self.assertAllEqual(read(tf.zeros([2, 0, 3]), block), np.zeros((4, 3)))

    def test_no_rows(self):
        block = make_block(tf.constant([0, 0]), 0, 3)
        self.assertAllEqual(block.row, np.full((2, 3), -1))
        self.assertAllEqual(from_block(tf.ones([2, 3, 4]), block), np.zeros((0, 4)))

    def test_gradients_are_transposes(self):
        # <to_block(x), v> = <x, from_block(v)>, and each is the other's gradient.
        counts, size, capacity = [4, 0, 1, 3], 11, 3
        block = make_block(tf.constant(counts), size, capacity)
        x, v = tf.constant(self.normal(size, 5)), tf.constant(self.normal(4, capacity, 5))
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x, v])
            there, back = to_block(x, block), from_block(v, block)
        self.assertAllClose(tf.reduce_sum(there * v), tf.reduce_sum(x * back), rtol=1e-4, atol=1e-4)
        row, _ = block_by_loop(counts, size, capacity)
        read = np.zeros((size, 5), "float32")
        for at in np.ndindex(*row.shape):
            if row[at] >= 0:
                read[row[at]] += v[at].numpy()
        self.assertAllEqual(tape.gradient(there, x, v), read)
        self.assertAllEqual(tape.gradient(back, v, x), move_by_loop(x.numpy(), row))

    def test_sizes_known_only_when_it_runs(self):
        @tf.function
        def places(counts, size, capacity):
            return make_block(counts, size, capacity)

        for counts, size, capacity in (([2, 3], 6, 2), ([0, 4], 4, 4), ([1, 1], 9, 1)):
            block = places(tf.constant(counts), tf.constant(size), tf.constant(capacity))
            row, place = block_by_loop(counts, size, capacity)
            self.assertAllEqual(block.row, row)
            self.assertAllEqual(block.place, place)
        self.assertEqual(places.experimental_get_tracing_count(), 1)

    def test_what_stands_in_a_place_without_a_row_is_not_read(self):
        block = make_block(tf.constant([1, 2]), 4, 2)
        rows = tf.constant([[1.0], [2.0], [3.0], [np.nan]])  # the last is of no group
        self.assertAllEqual(to_block(rows, block), [[[1.0], [0.0]], [[2.0], [3.0]]])
        values = tf.constant([[[1.0], [np.nan]], [[2.0], [3.0]]])
        self.assertAllEqual(from_block(values, block), [[1.0], [2.0], [3.0], [0.0]])
