import numpy as np
import tensorflow as tf

from tests import references
from tests.base import TestCase
from tests.gates.helpers import dense, random_weights, set_weights, skewed
from tf_moe.gates import Sinkhorn
from tf_moe.gates.sinkhorn import balance


class SinkhornTest(TestCase):
    def test_by_hand(self):
        # Scores of two tokens for two experts; both prefer expert 0, token 0 more.
        #   2 1   rows 2/3 1/3   columns over 19/15 and 11/15   10/19 5/11   token 0 stays
        #   3 2        3/5 2/5                                   9/19 6/11   token 1 goes to expert 1
        # Weights are sigmoids of the logits: 2 / 3 and 3 / 4 for expert 0, for expert 1 and token 1 2 / 3.
        gate = set_weights(Sinkhorn(2, 1, iterations=1), 2, kernel=np.log([[2, 1], [3, 2]]))
        routing = gate(np.eye(2, dtype="float32"), training=True)
        self.assertAllEqual(routing.expert_index, [[0], [1]])
        self.assertAllClose(routing.combine_weights, [[2 / 3], [2 / 3]])
        self.assertAllEqual(routing.load, [1, 1])
        routing = gate(np.eye(2, dtype="float32"))
        self.assertAllEqual(routing.expert_index, [[0], [0]])
        self.assertAllClose(routing.combine_weights, [[2 / 3], [3 / 4]])
        self.assertAllEqual(routing.load, [2, 0])

    def test_balances_in_training_alone(self):
        gate, x = skewed(random_weights(Sinkhorn(8, 1), 16, self.rng), self.normal(2000, 16))
        self.assertGreater(gate(x).load.numpy().max(), 1.5 * 250)
        self.assertAllInRange(gate(x, training=True).load, 0.5 * 250, 1.4 * 250)

    def test_a_choice_at_evaluation_depends_on_its_token_alone(self):
        gate, x = random_weights(Sinkhorn(6, 2), 8, self.rng), self.normal(40, 8)
        together, alone = gate(x), gate(x[17:18])
        self.assertAllEqual(alone.expert_index[0], together.expert_index[17])
        self.assertAllClose(alone.combine_weights[0], together.combine_weights[17])

    def test_untrained_gate_spreads_tokens(self):
        for training in (False, True):
            load = Sinkhorn(8, 1)(self.normal(4096, 32), training=training).load.numpy()
            self.assertAllInRange(load, 0.5 * 512, 1.5 * 512)

    def test_huge_logits_are_finite(self):
        gate = set_weights(Sinkhorn(3, 1), 2, kernel=[[1e30, -1e30, 0.0], [90.0, -90.0, 1e5]])
        x = np.float32([[1, 0], [0, 1], [-1, 0], [1, 1]])
        for mask in (None, tf.constant([True, True, False, True])):
            routing = gate(x, mask=mask, training=True)
            self.assertAllEqual(np.isfinite(routing.combine_weights), np.ones((4, 1)))
            self.assertAllInRange(dense(routing, 3), 0.0, 1.0)

    def test_arguments(self):
        with self.assertRaisesRegex(ValueError, "iterations must be a positive integer. Received: iterations=0"):
            Sinkhorn(4, 1, iterations=0)
        with self.assertRaisesRegex(ValueError, "Received: k=5"):
            Sinkhorn(4, 5)


class BalanceTest(TestCase):
    def test_against_the_reference(self):
        """Scaled by it, the tokens' softmaxes have the reference's plan, as far as rows go."""
        logits = 2 * self.rng.standard_normal((9, 4))
        for iterations in (1, 3, 50):
            balanced = logits + balance(tf.constant(logits, tf.float32), iterations).numpy()
            ours = np.array([references.softmax(row) for row in balanced])
            plan = references.sinkhorn(np.exp(logits), iterations)
            self.assertAllClose(ours, plan / plan.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-5)
        self.assertAllClose(ours.sum(axis=0), np.full(4, 9 / 4), rtol=0.02)  # balanced, after so many

    def test_masked_tokens_take_no_part(self):
        logits, mask = self.normal(9, 4), np.arange(9) % 3 > 0
        self.assertAllClose(balance(logits, 5, tf.constant(mask)), balance(logits[mask], 5), rtol=1e-4, atol=1e-5)
        self.assertAllEqual(np.isfinite(balance(logits, 5, tf.zeros(9, tf.bool))), np.ones(4))

    def test_has_no_gradient(self):
        logits = tf.constant(self.normal(5, 3))

        @tf.function
        def slope():
            with tf.GradientTape() as tape:
                tape.watch(logits)
                y = tf.reduce_sum(balance(logits, 3) ** 2) + tf.reduce_sum(logits)
            return tape.gradient(y, logits)

        self.assertAllEqual(slope(), np.ones((5, 3)))
