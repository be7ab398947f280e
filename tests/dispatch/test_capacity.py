import math
from fractions import Fraction

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.base import TestCase
from tests.dispatch.reference import fill_buffers, random_routing
from tests.dispatch.test_sorted import INDEX, WEIGHTS
from tf_moe.dispatch import DROP_BY, capacity_of, dispatch_capacity

TOKENS = tf.constant([[1.0], [10.0], [100.0]])
# Experts multiply by 1, 2 and 3; two rows each.
FACTORS = tf.constant([[1.0], [1.0], [2.0], [2.0], [3.0], [3.0]])


class DispatchCapacityTest(TestCase):
    """The scene of test_sorted.py with room for two tokens in each expert: expert 0, wanted by all three, drops one."""

    def test_the_last_token_is_dropped(self):
        plan = dispatch_capacity(INDEX, WEIGHTS, 3, capacity=2)
        self.assertAllEqual(plan.assignment, [0, 2, 1, 5, 3, -1])
        self.assertAllEqual(plan.slot, [[0, 2], [1, 4], [-1, 3]])
        self.assertAllEqual(plan.counts, [2, 2, 1])
        self.assertEqual((int(plan.dropped), plan.capacity), (1, 2))
        rows = plan.dispatch(TOKENS)
        self.assertAllEqual(rows, [[1.0], [10.0], [1.0], [100.0], [10.0], [0.0]])
        # Token 2 keeps what expert 1 makes of it: 0.1 * 200.
        self.assertAllClose(plan.combine(rows * FACTORS, WEIGHTS), [[1.3], [18.0], [20.0]])

    def test_the_lowest_weight_is_dropped(self):
        # Of 0.7, 0.6 and 0.9 the second goes, and expert 0's rows are in the order of the weights.
        plan = dispatch_capacity(INDEX, WEIGHTS, 3, capacity=2, drop_by="weight")
        self.assertAllEqual(plan.assignment, [4, 0, 1, 5, 3, -1])
        self.assertAllEqual(plan.slot, [[1, 2], [-1, 4], [0, 3]])
        self.assertAllEqual(plan.counts, [2, 2, 1])
        self.assertEqual(int(plan.dropped), 1)
        rows = plan.dispatch(TOKENS)
        # Token 1 keeps what expert 2 makes of it: 0.4 * 30.
        self.assertAllClose(plan.combine(rows * FACTORS, WEIGHTS), [[1.3], [12.0], [110.0]])

    def test_a_dropped_assignment_gets_no_gradient(self):
        with tf.GradientTape() as tape:
            tape.watch([TOKENS, WEIGHTS])
            plan = dispatch_capacity(INDEX, WEIGHTS, 3, capacity=2)
            y = plan.combine(plan.dispatch(TOKENS) * FACTORS, WEIGHTS)
        d_tokens, d_weights = tape.gradient(y, [TOKENS, WEIGHTS])
        self.assertAllClose(d_tokens, [[0.7 + 0.6], [0.6 + 1.2], [0.2]])
        self.assertAllClose(d_weights, [[1.0, 2.0], [10.0, 30.0], [0.0, 200.0]])

    def test_first_tokens_stay_among_equal_weights(self):
        # Four tokens want expert 1, three of them equally; the heaviest is the last.
        index, weights = tf.ones([4, 1], tf.int32), tf.constant([[0.5], [0.5], [0.5], [0.8]])
        plan = dispatch_capacity(index, weights, 2, capacity=3, drop_by="weight")
        self.assertAllEqual(plan.slot >= 0, [[True], [True], [False], [True]])
        self.assertAllEqual(plan.assignment, [-1, -1, -1, 3, 0, 1])

    def test_a_masked_token_leaves_its_place(self):
        # Token 0 is masked: token 2 gets the place in expert 0 that it would have taken, by either rule.
        weights = tf.constant([[0.0, 0.0], [0.6, 0.4], [0.9, 0.1]])
        for drop_by, rows in (("position", [2, 4]), ("weight", [4, 2])):
            plan = dispatch_capacity(INDEX, weights, 3, 2, drop_by)
            self.assertAllEqual(plan.assignment, [*rows, 5, -1, 3, -1])
            self.assertAllEqual(plan.slot[0], [-1, -1])
            self.assertAllEqual(plan.counts, [2, 1, 1])
            self.assertEqual(int(plan.dropped), 0)

    def test_against_buffers_filled_one_by_one(self):
        @settings(max_examples=20, deadline=None)
        @given(st.integers(1, 8), st.integers(1, 4), st.data(), st.integers(1, 5), st.integers(0, 2**31))
        def check(T, E, data, capacity, seed):
            K = data.draw(st.integers(1, E))
            index, weights = random_routing(np.random.default_rng(seed), T, K, E)
            for drop_by in DROP_BY:
                plan = dispatch_capacity(tf.constant(index), tf.constant(weights), E, capacity, drop_by)
                buffers, dropped = fill_buffers(index, weights, E, capacity, drop_by)
                rows = [b + [-1] * (capacity - len(b)) for b in buffers]
                self.assertAllEqual(plan.assignment, np.ravel(rows))
                self.assertAllEqual(plan.counts, [len(b) for b in buffers])
                self.assertEqual(int(plan.dropped), dropped)

        check()

    def test_graph_and_xla_with_a_capacity_known_when_they_run(self):
        index, weights = random_routing(self.rng, 12, 2, 3)
        for drop_by in DROP_BY:
            plain = dispatch_capacity(index, weights, 3, 3, drop_by)

            @tf.function
            def graph(capacity, drop_by=drop_by):
                return dispatch_capacity(index, weights, 3, capacity, drop_by)

            compiled = tf.function(
                lambda drop_by=drop_by: dispatch_capacity(index, weights, 3, 3, drop_by), jit_compile=True
            )
            for plan in (graph(tf.constant(3)), compiled()):
                for value, want in zip(plan, plain, strict=True):
                    self.assertAllEqual(value, want)


class CapacityOfTest(TestCase):
    CASES = (
        # tokens, experts, k, factor: capacity
        ((6, 3, 2, 1.0), 4),  # 12 assignments over 3 experts
        ((7, 3, 2, 1.0), 5),  # 14 / 3 = 4.67
        ((6, 3, 2, 1.25), 5),  # 12 * 1.25 / 3 = 5, exactly
        ((100, 16, 4, 1.0), 25),
        ((100, 16, 4, 1.5), 38),  # 37.5
        ((10, 4, 1, 0.1), 1),  # 0.25
        ((6, 4, 4, 3.0), 6),  # no more than one row a token
        ((1, 64, 1, 1.0), 1),
        ((2, 2, 1, 100.0), 2),
    )

    def test_by_hand(self):
        for arguments, expected in self.CASES:
            with self.subTest(arguments):
                capacity = capacity_of(*arguments)
                self.assertIs(type(capacity), int)
                self.assertEqual(capacity, expected)

    def test_numbers_of_numpy(self):
        capacity = capacity_of(np.int64(100), np.int32(16), np.int8(4), np.float32(1.5))
        self.assertIs(type(capacity), int)
        self.assertEqual(capacity, 38)

    def test_a_tensor_for_a_tensor(self):
        for (tokens, *rest), expected in self.CASES:
            capacity = capacity_of(tf.constant(tokens), *rest)
            self.assertIsInstance(capacity, tf.Tensor)
            self.assertEqual(capacity.dtype, tf.int32)
            self.assertEqual(int(capacity), expected)

    def test_no_tokens_at_least_one_row(self):
        self.assertEqual(capacity_of(0, 4, 2, 1.0), 1)
        self.assertEqual(int(capacity_of(tf.constant(0), 4, 2, 1.0)), 1)

    def test_a_whole_share_is_not_rounded_up(self):
        # factor * k / experts is no binary fraction, and its rounding error must not buy a row.
        for tokens, num_experts, k in ((49, 7, 1), (85, 17, 3), (87, 29, 5), (600, 24, 4)):
            with self.subTest(tokens=tokens, num_experts=num_experts, k=k):
                self.assertEqual(capacity_of(tokens, num_experts, k, 1.0), k * tokens // num_experts)
                self.assertEqual(int(capacity_of(tf.constant(tokens), num_experts, k, 1.0)), k * tokens // num_experts)

    def test_exact_up_to_the_largest_numbers(self):
        # 5/256 of the tokens is computed in 32 bits, 12347/10240000 takes 64.
        for num_experts, factor in ((256, 1.25), (4096, 1.2347)):
            for tokens in (1, 12_345, 2**31 - 1):
                exact = math.ceil(Fraction(str(factor)) * 4 * tokens / num_experts)
                self.assertEqual(capacity_of(tokens, num_experts, 4, factor), exact)
                self.assertEqual(int(capacity_of(tf.constant(tokens), num_experts, 4, factor)), exact)

    def test_the_nearest_fraction_of_small_numbers(self):
        """So that 32 bits hold what is computed, which is all that LiteRT can divide."""
        for factor, nearest in ((1.00004, 1.0), (1.00006, 1.0001), (0.333333333, 1 / 3)):
            self.assertEqual(capacity_of(6_000_000, 2, 1, factor), capacity_of(6_000_000, 2, 1, nearest))

    def test_integer_and_tensor_agree(self):
        @settings(max_examples=20, deadline=None)
        @given(st.integers(1, 64), st.data(), st.sampled_from([1.0, 1.25, 1.5, 2.0]))
        def check(num_experts, data, factor):
            k = data.draw(st.integers(1, num_experts))
            tokens = np.arange(1, 500)
            exact = [max(1, min(t, math.ceil(int(4 * factor) * k * int(t) / (4 * num_experts)))) for t in tokens]
            self.assertEqual([capacity_of(int(t), num_experts, k, factor) for t in tokens], exact)
            self.assertAllEqual(capacity_of(tf.constant(tokens, tf.int32), num_experts, k, factor), exact)

        check()
