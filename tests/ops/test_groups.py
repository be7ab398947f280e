import hypothesis
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from tests.base import TestCase
from tf_moe.ops.groups import group_by


class GroupByTest(TestCase):
    def check(self, index, num_groups, groups=None):
        index = np.asarray(index, np.int32)
        groups = group_by(tf.constant(index), num_groups) if groups is None else groups
        order = np.argsort(index, kind="stable")
        self.assertAllEqual(groups.order, order)
        self.assertAllEqual(groups.place.numpy()[order], np.arange(len(index)))
        counts = np.bincount(index, minlength=num_groups + 1)[:num_groups]
        self.assertAllEqual(groups.counts, counts)
        self.assertAllEqual(groups.starts, np.cumsum(counts) - counts)
        for part in groups:
            self.assertEqual(part.dtype, tf.int32)

    def test_by_hand(self):
        # Items 1 and 3 are of group 0, 0 of group 1, none of group 2, and item 2 of no group.
        order, place, counts, starts = group_by(tf.constant([1, 0, 3, 0]), 3)
        self.assertAllEqual(order, [1, 3, 0, 2])
        self.assertAllEqual(place, [2, 0, 3, 1])
        self.assertAllEqual(counts, [2, 1, 0])
        self.assertAllEqual(starts, [0, 2, 3])

    def test_priority(self):
        # Of group 0 are items 1, 3 and 4, of which 1 and 4 are equal; item 2 is of no group.
        groups = group_by(tf.constant([1, 0, 2, 0, 0]), 2, tf.constant([0.1, 0.2, 0.9, 0.5, 0.2]))
        self.assertAllEqual(groups.order, [3, 1, 4, 0, 2])
        self.assertAllEqual(groups.place, [3, 1, 4, 0, 2])
        self.assertAllEqual(groups.counts, [3, 1])

    def test_against_numpy(self):
        for size, num_groups in ((1000, 7), (1000, 300), (5, 100), (300, 1)):
            self.check(self.rng.integers(0, num_groups + 1, size), num_groups)

    def test_empty_groups_no_items_and_no_groups_items(self):
        self.check([], 4)
        self.check([2, 2, 2], 4)
        self.check([4, 4, 4], 4)
        self.check([0], 1)
        self.check([1], 1)

    def test_graph_and_xla(self):
        index = self.rng.integers(0, 6, 50)
        for jit_compile in (False, True):
            compiled = tf.function(lambda i: group_by(i, 5), jit_compile=jit_compile)
            self.check(index, 5, compiled(tf.constant(index, tf.int32)))
        any_size = tf.function(lambda i: group_by(i, 5), input_signature=[tf.TensorSpec([None], tf.int32)])
        for size in (0, 1, 20):
            self.check(index[:size], 5, any_size(tf.constant(index[:size], tf.int32)))

    @hypothesis.settings(max_examples=20, deadline=None, database=None)
    @hypothesis.given(num_groups=st.integers(1, 9), data=st.data())
    def test_any(self, num_groups, data):
        self.check(data.draw(st.lists(st.integers(0, num_groups), max_size=12)), num_groups)
