"""Which tokens take part."""

import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.ops.screen import screen

NAN, INF = float("nan"), float("inf")


class ScreenTest(TestCase):
    def test_by_hand(self):
        tokens = tf.constant([[1.0, 2], [NAN, 0], [0, INF], [-INF, INF], [1e38, 0], [-1e33, 1e33], [1e-45, 0]])
        mask = tf.constant([True, True, False, True, True, True, False])
        screened = screen(tokens, mask)
        self.assertAllEqual(screened.valid, [True, False, False, False, False, True, False])
        self.assertAllClose(screened.clear(tokens), [[1, 2], [0, 0], [0, 0], [0, 0], [0, 0], [-1e33, 1e33], [0, 0]])
        rows = np.tile([[5.0], [6.0]], (7, 1))[:7]
        self.assertAllEqual(np.isnan(screened.fill(rows))[:, 0], [False, True, False, True, True, False, False])
        self.assertAllEqual(np.nan_to_num(screened.fill(rows))[:, 0], [5, 0, 0, 0, 0, 6, 0])
        self.assertAllClose(screened.nonfinite_fraction(), 3 / 5)

    def test_without_a_mask(self):
        screened = screen(tf.constant([[NAN], [1.0], [2], [3]]))
        self.assertAllEqual(screened.valid, [False, True, True, True])
        self.assertAllEqual(np.isnan(screened.fill(tf.ones([4, 1]))), [[True], [False], [False], [False]])
        self.assertAllClose(screened.nonfinite_fraction(), 0.25)

    def test_nothing_is_nan_without_need(self):
        """Or tf.debugging.enable_check_numerics could not be used."""
        tf.debugging.enable_check_numerics()
        self.addCleanup(tf.debugging.disable_check_numerics)
        tokens = tf.ones([3, 2])
        for mask in (None, tf.constant([True, False, True])):
            for fill in (lambda t, m: screen(t, m).fill(t), tf.function(lambda t, m: screen(t, m).fill(t))):
                expected = [[1, 1], [0 if mask is not None else 1] * 2, [1, 1]]
                self.assertAllEqual(fill(tokens, mask), expected)

    def test_no_tokens(self):
        self.assertAllEqual(screen(tf.zeros([0, 3])).nonfinite_fraction(), 0)
        self.assertAllEqual(screen(tf.zeros([2, 3]), tf.zeros([2], tf.bool)).nonfinite_fraction(), 0)

    def test_the_largest(self):
        """Numbers that add up to 1e35 are too large, be they one or several."""
        tokens = tf.constant([[6e34, -6e34], [4e34, -4e34], [0.0, 1.1e35], [0.0, -0.9e35]])
        self.assertAllEqual(screen(tokens).valid, [False, True, False, True])

    def test_half_precision(self):
        """The largest number of each type is finite; many of float16's do not add up to infinity."""
        for dtype in (tf.float16, tf.bfloat16, tf.float64):
            tokens = tf.constant([[60000.0] * 8, [INF] * 8], dtype)
            self.assertAllEqual(screen(tokens).valid, [True, False])
            self.assertEqual(screen(tokens).fill(tokens).dtype, dtype)

    def test_gradient_passes_where_a_token_is_valid(self):
        tokens = tf.constant([[1.0, 2], [NAN, 0]])
        with tf.GradientTape() as tape:
            tape.watch(tokens)
            screened = screen(tokens)
            loss = tf.reduce_sum(screened.fill(screened.clear(tokens) ** 2))
        self.assertAllEqual(tape.gradient(loss, tokens), [[2, 4], [0, 0]])
