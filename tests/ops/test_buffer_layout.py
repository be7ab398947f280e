from unittest import mock

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.base import TestCase
from tf_moe.ops import buffer_layout
from tf_moe.ops.buffer_layout import make_buffer_layout


class BufferLayoutTest(TestCase):
    """N items, G groups, C places a group in the block."""

    def layout_of(self, index, groups, capacity):
        with mock.patch.object(buffer_layout, "cheapest_places", return_value=tf.constant(capacity)):
            return make_buffer_layout(tf.constant(index, tf.int32), groups)

    def test_a_scene(self):
        # Group 0 has items 1, 2, 4; group 1 item 0; group 2 items 5 and 6; item 3 is of no group.
        index = [1, 0, 0, 3, 0, 2, 2]
        found = self.layout_of(index, 3, 2)
        self.assertAllEqual(found.item, [1, 2, 0, -1, 5, 6, 4])
        self.assertAllEqual(found.row, [2, 0, 1, -1, 6, 4, 5])
        self.assertAllEqual(found.counts, [3, 1, 2])
        found = self.layout_of(index, 3, 1)
        self.assertAllEqual(found.item, [1, 0, 5, 2, 4, 6])
        found = self.layout_of(index, 3, 0)
        self.assertAllEqual(found.item, [1, 2, 4, 0, 5, 6])

    def test_without_a_block(self):
        index = tf.constant([1, 0, 2, 0])
        found = make_buffer_layout(index, 2, with_block=False)
        self.assertIsNone(found.places)
        self.assertAllEqual(found.item, [1, 3, 0])
        self.assertAllEqual(found.row, [2, 0, -1, 1])
        found = tf.function(lambda index: make_buffer_layout(index, 2)[:2], jit_compile=True)(index)
        self.assertAllEqual(found[0], [1, 3, 0, -1])
        self.assertAllEqual(found[1], [2, 0, -1, 1])

    def test_one_by_one(self):
        @settings(max_examples=30, deadline=None)
        @given(st.lists(st.integers(0, 4), max_size=20), st.integers(0, 6))
        def check(index, capacity):
            block, beyond = [], []
            for group in range(4):
                items = [n for n, g in enumerate(index) if g == group]
                block += (items[:capacity] + [-1] * capacity)[:capacity]
                beyond += items[capacity:]
            found = self.layout_of(index, 4, capacity)
            self.assertAllEqual(found.item, np.array(block + beyond, "int32"))
            rows = [(block + beyond).index(n) if g < 4 else -1 for n, g in enumerate(index)]
            self.assertAllEqual(found.row, np.array(rows, "int32"))

        check()
