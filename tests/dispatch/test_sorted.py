import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.base import TestCase
from tests.dispatch.reference import fill_buffers, random_routing
from tf_moe.dispatch import dispatch_sorted

# Three tokens, three experts, two choices each. Assignments are numbered along the rows, 0 to 5:
#   token 0: expert 0 (0.7), expert 1 (0.3)
#   token 1: expert 0 (0.6), expert 2 (0.4)
#   token 2: expert 0 (0.9), expert 1 (0.1)
INDEX = tf.constant([[0, 1], [0, 2], [0, 1]])
WEIGHTS = tf.constant([[0.7, 0.3], [0.6, 0.4], [0.9, 0.1]])


class DispatchSortedTest(TestCase):
    def test_a_scene(self):
        # Expert 0 gets all three tokens, in their order; expert 1 tokens 0 and 2; expert 2 token 1.
        plan = dispatch_sorted(INDEX, WEIGHTS, 3)
        self.assertAllEqual(plan.assignment, [0, 2, 4, 1, 5, 3])
        self.assertAllEqual(plan.slot, [[0, 3], [1, 5], [2, 4]])
        self.assertAllEqual(plan.counts, [3, 2, 1])
        self.assertEqual(int(plan.dropped), 0)
        self.assertIsNone(plan.capacity)
        rows = plan.dispatch(tf.constant([[1.0], [10.0], [100.0]]))
        self.assertAllEqual(rows, [[1.0], [10.0], [100.0], [1.0], [100.0], [10.0]])
        # Experts multiply by 1, 2 and 3: 0.7 + 0.3 * 2, 0.6 * 10 + 0.4 * 30, 0.9 * 100 + 0.1 * 200.
        outputs = rows * tf.constant([[1.0], [1.0], [1.0], [2.0], [2.0], [3.0]])
        self.assertAllClose(plan.combine(outputs, WEIGHTS), [[1.3], [18.0], [110.0]])

    def test_a_masked_token_takes_no_row(self):
        # Token 1 is masked: it leaves expert 2 without rows. So has token 2's second choice no weight.
        weights = tf.constant([[0.7, 0.3], [0.0, 0.0], [1.0, 0.0]])
        plan = dispatch_sorted(INDEX, weights, 3)
        self.assertAllEqual(plan.assignment, [0, 4, 1])
        self.assertAllEqual(plan.slot, [[0, 2], [-1, -1], [1, -1]])
        self.assertAllEqual(plan.counts, [2, 1, 0])

    def test_xla_keeps_the_shape(self):
        # Under XLA there are always T * K rows, the unused ones at the end.
        weights = tf.constant([[0.7, 0.3], [0.0, 0.0], [1.0, 0.0]])
        plan = tf.function(dispatch_sorted, jit_compile=True)(INDEX, weights, 3)
        self.assertAllEqual(plan.assignment, [0, 4, 1, -1, -1, -1])
        self.assertAllEqual(plan.slot, [[0, 2], [-1, -1], [1, -1]])
        self.assertAllEqual(plan.counts, [2, 1, 0])
        graph = tf.function(dispatch_sorted)(INDEX, weights, 3)
        self.assertAllEqual(graph.assignment, [0, 4, 1])

    def test_against_buffers_filled_one_by_one(self):
        @settings(max_examples=20, deadline=None)
        @given(st.integers(0, 8), st.integers(1, 4), st.data(), st.integers(0, 2**31))
        def check(T, E, data, seed):
            K = data.draw(st.integers(1, E))
            index, weights = random_routing(np.random.default_rng(seed), T, K, E)
            plan = dispatch_sorted(tf.constant(index), tf.constant(weights), E)
            buffers, _ = fill_buffers(index, weights, E)
            self.assertAllEqual(plan.assignment, np.array(sum(buffers, []), "int32"))
            self.assertAllEqual(plan.counts, [len(b) for b in buffers])

        check()
