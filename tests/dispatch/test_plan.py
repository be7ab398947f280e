"""What holds for every dispatcher."""

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.base import TestCase
from tests.dispatch.reference import random_routing
from tf_moe.dispatch import DROP_BY, dispatch_capacity, dispatch_sorted


def by_position(index, weights, num_experts, capacity):
    return dispatch_capacity(index, weights, num_experts, capacity, "position")


def by_weight(index, weights, num_experts, capacity):
    return dispatch_capacity(index, weights, num_experts, capacity, "weight")


def dropless(index, weights, num_experts, capacity):
    return dispatch_sorted(index, weights, num_experts)


DISPATCHERS = (dropless, by_position, by_weight)


class PlanTest(TestCase):
    """T tokens, K choices, E experts, S rows, C capacity, D width."""

    def test_the_dispatchers_are_all_here(self):
        self.assertLen(DISPATCHERS, 1 + len(DROP_BY))

    def check_invariants(self, plan, index, weights, num_experts, capacity):
        assignment, slot, counts = (t.numpy() for t in (plan.assignment, plan.slot, plan.counts))
        assigned, placed = weights > 0, slot >= 0
        self.assertEqual((slot.shape, counts.shape), (index.shape, (num_experts,)))
        self.assertFalse(np.any(placed & ~assigned))
        self.assertEqual(int(plan.dropped), np.sum(assigned & ~placed))
        # Slots are different, and row and slot are inverse to one another.
        self.assertLen(set(slot[placed]), placed.sum())
        for a, s in enumerate(slot.ravel()):
            if s >= 0:
                self.assertEqual(assignment[s], a)
        self.assertEqual(np.sum(assignment >= 0), placed.sum())
        # Every expert uses the first of its own rows.
        self.assertAllEqual(counts, np.bincount(index[placed], minlength=num_experts))
        starts = np.cumsum(counts) - counts if plan.capacity is None else np.arange(num_experts) * capacity
        for expert in range(num_experts):
            rows = assignment[starts[expert] :][: counts[expert]]
            self.assertAllEqual(index.ravel()[rows], [expert] * counts[expert])
        if plan.capacity is None:
            self.assertEqual(int(plan.dropped), 0)
        else:
            self.assertEqual(plan.capacity, capacity)
            self.assertLen(assignment, num_experts * capacity)
            self.assertLessEqual(counts.max(), capacity)
            # Nothing is dropped while there is room.
            wanted = np.bincount(index[assigned], minlength=num_experts)
            self.assertAllEqual(counts, np.minimum(wanted, capacity))

    def test_invariants(self):
        @settings(max_examples=20, deadline=None)
        @given(st.integers(1, 7), st.integers(1, 4), st.data(), st.integers(1, 8), st.integers(0, 2**31))
        def check(T, E, data, capacity, seed):
            K = data.draw(st.integers(1, E))
            index, weights = random_routing(np.random.default_rng(seed), T, K, E)
            for dispatch in DISPATCHERS:
                plan = dispatch(tf.constant(index), tf.constant(weights), E, capacity)
                self.check_invariants(plan, index, weights, E, capacity)

        check()

    def test_all_masked(self):
        tokens, index, weights = tf.ones([3, 4]), tf.constant([[0, 1], [1, 2], [2, 0]]), tf.zeros([3, 2])

        def through(dispatch):
            with tf.GradientTape() as tape:
                tape.watch([tokens, weights])
                plan = dispatch(index, weights, 3, 2)
                y = plan.combine(1 + plan.dispatch(tokens), weights)
            return plan, y, *tape.gradient(y, [tokens, weights])

        for dispatch in DISPATCHERS:
            for jit in (False, None, True):
                with self.subTest(dispatch.__name__, jit=jit):
                    form = through if jit is False else tf.function(through, jit_compile=jit)
                    plan, y, d_tokens, d_weights = form(dispatch)
                    self.assertAllEqual(plan.counts, [0, 0, 0])
                    self.assertEqual(int(plan.dropped), 0)
                    self.assertAllEqual(plan.slot, np.full((3, 2), -1))
                    self.assertAllEqual(plan.assignment, np.full(len(plan.assignment), -1))
                    self.assertAllEqual(y, np.zeros((3, 4)))
                    self.assertAllEqual(d_tokens, np.zeros((3, 4)))
                    self.assertAllEqual(d_weights, np.zeros((3, 2)))

    def test_no_tokens(self):
        tokens, index, weights = tf.zeros([0, 4]), tf.zeros([0, 2], tf.int32), tf.zeros([0, 2])
        for dispatch in DISPATCHERS:
            with self.subTest(dispatch.__name__):
                plan = dispatch(index, weights, 3, 1)
                self.assertAllEqual(plan.counts, [0, 0, 0])
                self.assertEqual(int(plan.dropped), 0)
                rows = plan.dispatch(tokens)
                self.assertAllEqual(rows, np.zeros((len(plan.assignment), 4)))
                self.assertAllEqual(plan.combine(rows, weights), np.zeros((0, 4)))

    def test_all_equal_the_sum_over_experts_where_nothing_is_dropped(self):
        # Expert e multiplies by e + 1. y_t = sum_k w_tk (e_tk + 1) x_t, and its gradients, by loops.
        T, K, E, D = 9, 2, 5, 3
        index, weights = random_routing(self.rng, T, K, E)
        weights *= self.rng.uniform(0.5, 1, weights.shape).astype("float32")
        tokens, d_y = self.normal(T, D), self.normal(T, D)
        y, d_tokens, d_weights = np.zeros((T, D)), np.zeros((T, D)), np.zeros((T, K))
        for t in range(T):
            for k in range(K):
                if weights[t, k] > 0:
                    y[t] += weights[t, k] * (index[t, k] + 1) * tokens[t]
                    d_tokens[t] += weights[t, k] * (index[t, k] + 1) * d_y[t]
                    d_weights[t, k] = (index[t, k] + 1) * np.dot(tokens[t], d_y[t])

        def through(dispatch, tokens, weights):
            with tf.GradientTape() as tape:
                tape.watch([tokens, weights])
                plan = dispatch(tf.constant(index), weights, E, T)
                expert = tf.gather(tf.reshape(index, [-1]), tf.maximum(plan.assignment, 0))
                outputs = plan.dispatch(tokens) * tf.cast(tf.expand_dims(expert + 1, -1), tf.float32)
                combined = plan.combine(outputs, weights)
            return combined, *tape.gradient(combined, [tokens, weights], tf.constant(d_y))

        for dispatch in DISPATCHERS:
            for jit in (False, True):
                with self.subTest(dispatch.__name__, jit=jit):
                    form = tf.function(through, jit_compile=True) if jit else through
                    got = form(dispatch, tf.constant(tokens), tf.constant(weights))
                    for value, want in zip(got, (y, d_tokens, d_weights), strict=True):
                        self.assertAllClose(value, want, rtol=1e-4, atol=1e-5)

    def test_any_number_of_tokens_traced_once(self):
        for dispatch in DISPATCHERS:

            @tf.function(
                input_signature=[tf.TensorSpec([None, 2], tf.int32), tf.TensorSpec([None, 2]), tf.TensorSpec([None, 3])]
            )
            def through(index, weights, tokens, dispatch=dispatch):
                plan = dispatch(index, weights, 4, 2)
                return plan, plan.dispatch(tokens), plan.combine(plan.dispatch(tokens), weights)

            for T in (1, 6, 11):
                index, weights = random_routing(self.rng, T, 2, 4)
                weights[0] = 1  # one token at least is not masked
                tokens = self.normal(T, 3)
                plan, rows, y = through(index, weights, tokens)
                self.check_invariants(plan._replace(capacity=None if dispatch is dropless else 2), index, weights, 4, 2)
                for row, a in zip(rows, plan.assignment.numpy(), strict=True):
                    self.assertAllEqual(row, tokens[a // 2] if a >= 0 else np.zeros(3))
                share = np.sum(weights * (plan.slot.numpy() >= 0), axis=1, keepdims=True)
                self.assertAllClose(y, share * tokens, rtol=1e-5, atol=1e-5)
            self.assertEqual(through.experimental_get_tracing_count(), 1)

    def test_rows_in_bfloat16_are_summed_in_float32(self):
        # 1 + 1/256 is no bfloat16 number, each of the two terms is.
        for dispatch in DISPATCHERS:
            weights = tf.constant([[1.0, 0.00390625]])
            plan = dispatch(tf.constant([[0, 1]]), weights, 2, 1)
            rows = plan.dispatch(tf.ones([1, 1], tf.bfloat16))
            self.assertEqual(rows.dtype, tf.bfloat16)
            self.assertAllEqual(plan.combine(rows, weights), [[1.00390625]])
