import numpy as np
import tensorflow as tf

from tests import references
from tests.base import TestCase
from tf_moe.gates.batchwise import batchwise_choice


class BatchwiseChoiceTest(TestCase):
    def test_against_the_reference(self):
        for tokens, experts, k in ((12, 4, 1), (12, 4, 3), (7, 3, 2), (2, 9, 1), (5, 5, 5)):
            scores = self.rng.uniform(0, 1, (tokens, experts)).astype("float32")
            m = max(1, round(k * tokens / experts))
            self.assertAllEqual(batchwise_choice(scores, k), references.batchwise_mask(scores, m).astype(bool))

    def test_m_is_rounded_but_at_least_one(self):
        # 10 tokens over 4 experts: k = 1 asks for 2.5, k = 3 for 7.5 (to the even one); over 40, for 0.25.
        for experts, k, m in ((4, 1, 2), (4, 3, 8), (40, 1, 1), (3, 1, 3), (3, 2, 7)):
            chosen = batchwise_choice(self.rng.uniform(0, 1, (10, experts)).astype("float32"), k)
            self.assertAllEqual(tf.math.count_nonzero(chosen, axis=0), np.full(experts, m))

    def test_ties_turn_with_the_expert(self):
        # 4 tokens, 2 experts, m = 2: expert 0 takes tokens 0 1, expert 1 tokens 2 3.
        self.assertAllEqual(batchwise_choice(tf.ones([4, 2]), 1), [[1, 0], [1, 0], [0, 1], [0, 1]])

    def test_is_the_same_under_xla(self):
        """Which sorts all tokens, where others take the best: with and without ties, masked, in any number."""
        compiled = tf.function(batchwise_choice, jit_compile=True)
        for tokens, experts, k in ((40, 6, 2), (40, 6, 6), (7, 9, 1), (1, 3, 2), (0, 3, 1)):
            for levels in (2, 5, 10**6):
                scores = tf.constant(self.rng.integers(0, levels, (tokens, experts)), tf.float32) / levels
                for share in (None, 0.0, 0.5, 1.0):
                    mask = None if share is None else tf.constant(self.rng.random(tokens) < share)
                    chosen = batchwise_choice(scores, k, mask)
                    self.assertEqual((chosen.dtype, chosen.shape), (tf.bool, (tokens, experts)))
                    self.assertAllEqual(chosen, compiled(scores, k, mask))
                    if mask is not None:
                        self.assertFalse(np.any(chosen[~mask]))

    def test_has_no_gradient(self):
        scores = tf.constant(self.rng.uniform(0, 1, (4, 2)), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(scores)
            y = tf.reduce_sum(tf.cast(batchwise_choice(scores, 1), tf.float32))
        self.assertIsNone(tape.gradient(y, scores))
