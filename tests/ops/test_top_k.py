from unittest import mock

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tests.base import TestCase
from tf_moe.ops.top_k import top_k_indices


class TopKIndicesTest(TestCase):
    def check(self, x, k):
        # Stable: among equals the first comes first.
        self.assertAllEqual(top_k_indices(x, k), np.argsort(-x, axis=1, kind="stable")[:, :k])

    def test_as_sorted(self):
        for num, k in ((4096, 5), (1024, 1), (256, 4), (768, 3), (96, 2), (97, 2), (16, 16), (7, 3), (1, 1)):
            with self.subTest(num=num, k=k):
                self.check(self.normal(9, num), k)

    @given(st.data())
    def test_equal_numbers(self, data):
        k = data.draw(st.integers(1, 6))
        num = data.draw(st.sampled_from([k, 64, 96, 128, 250, 256, 512]))
        x = data.draw(st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 2.0, 1e30]), min_size=num, max_size=num))
        self.check(np.float32([x, x[::-1]]), k)

    def test_an_equal_number_in_a_block_with_a_smaller_largest(self):
        """The first comes first, though its block is not the one with the larger maximum."""
        x = np.zeros((1, 256), "float32")
        x[0, [3, 100, 101]] = 5, 7, 5
        self.check(x, 2)

    def test_large_rows_are_not_searched_through(self):
        searched = []
        search = tf.math.top_k

        def counting(x, k):
            searched.append(x.shape[-1])
            return search(x, k)

        with mock.patch.object(tf.math, "top_k", counting):
            top_k_indices(self.normal(3, 4096), 4)
        self.assertBetween(sum(searched), 1, 4096 / 10)

    def test_unknown_and_no_rows(self):
        function = tf.function(lambda x: top_k_indices(x, 2), input_signature=[tf.TensorSpec([None, 256])])
        x = self.normal(5, 256)
        self.assertAllEqual(function(x), np.argsort(-x, axis=1)[:, :2])
        self.assertAllEqual(function(x[:0]).shape, (0, 2))
