from unittest import mock

import numpy as np
import tensorflow as tf

from tests import references
from tests.base import TestCase
from tests.gates.helpers import random_weights
from tests.mesh.helpers import Program, strategy_on
from tf_moe.gates import NoisyTopK, choice
from tf_moe.gates.choice import choose, choose_noisy_by_token, softmax_of_chosen
from tf_moe.ops.noise import Noise


class ChoiceTest(TestCase):
    def test_choose_noisy_by_token(self):
        for k in (1, 2, 4):
            clean, noise_logits, noise = self.rng.standard_normal((3, 5, 4))
            stddev = references.softplus(noise_logits)
            noisy = clean + noise * stddev
            index, weights, probability = choose_noisy_by_token(*np.float32((clean, noise_logits, noise)), k)
            self.assertAllEqual(index, np.argsort(-noisy, axis=1)[:, :k])
            gates = np.array([references.gate_values(h, k) for h in noisy])
            self.assertAllClose(weights, np.take_along_axis(gates, index.numpy(), axis=1), rtol=1e-4, atol=1e-5)
            expected = references.load_probabilities(clean, noisy, stddev, k)
            self.assertAllClose(probability, expected, rtol=1e-4, atol=1e-4)

    def test_large_gates_choose_by_parts_and_find_the_same(self):
        self.enter_context(mock.patch.object(choice, "ONLY_LOGITS_FROM", 4))
        arguments = *map(tf.constant, self.normal(2, 7, 5)), Noise(tf.constant([1, 2]))
        mask = tf.constant([True] * 5 + [False] * 2)
        with mock.patch.object(choice, "noisy_top_k", wraps=choice.noisy_top_k) as by_parts:
            for k, normalize, large in (
                (2, "chosen", True),
                (1, "chosen", False),
                (2, "all", False),
                (5, "chosen", False),
            ):
                got = choice.choose_noisy(*arguments, k, normalize, mask)
                self.assertEqual(by_parts.called, large)
                by_parts.reset_mock()
                with mock.patch.object(choice, "ONLY_LOGITS_FROM", 6):
                    expected = choice.choose_noisy(*arguments, k, normalize, mask)
                by_parts.assert_not_called()
                for a, b in zip(got, expected, strict=True):
                    self.assertAllClose(a, b, rtol=1e-4, atol=1e-5)
            # XLA merges the passes by itself.
            under_xla = tf.function(lambda *a: choice.choose_noisy(*a, arguments[2], 2), jit_compile=True)
            self.assertAllClose(under_xla(*arguments[:2]), choice.choose_noisy(*arguments, 2), rtol=1e-4, atol=1e-5)
            by_parts.assert_called_once()

    def test_large_gates_on_a_mesh(self):
        """There too they are what they are on one device, without parts."""
        self.enter_context(mock.patch.object(choice, "ONLY_LOGITS_FROM", 4))
        strategy, x = strategy_on(2), self.normal(8, 5)
        one = random_weights(NoisyTopK(6, 2, seed=3), 5, self.rng)
        with strategy.scope():
            many = NoisyTopK(6, 2, seed=3)
            many.build((None, 5))
        many.set_weights(one.get_weights())

        def step_of(gate):
            def step(x):
                with tf.GradientTape() as tape:
                    routing = gate(x, training=True)
                    y = tf.reduce_sum(routing.load**2) + tf.reduce_sum(routing.combine_weights[:, 0])
                slopes = tape.gradient(y, [w.value for w in gate.trainable_variables])
                return routing.expert_index, routing.combine_weights, routing.load, *slopes

            return step

        expected = step_of(one)(tf.constant(x))
        for ours, want in zip(Program(strategy, step_of(many))(x), expected, strict=True):
            self.assertAllClose(ours, want, rtol=1e-3, atol=1e-4)

    def test_choose(self):
        logits = self.normal(5, 4)
        for k in (1, 2, 4):
            index, weights = choose(logits, tf.range(5), k)
            self.assertAllEqual(index, np.argsort(-logits, axis=1)[:, :k])
            gates = np.array([references.gate_values(h, k) for h in logits.astype("float64")])
            self.assertAllClose(weights, np.take_along_axis(gates, index.numpy(), axis=1))

    def test_weights_of_huge_logits_are_finite(self):
        logits = tf.constant([[1e30, -1e30, 0.0], [-90.0, -90.0, -90.0]])
        for k in (1, 2):
            _, weights = choose(logits, tf.zeros(2, tf.int32), k)
            self.assertAllClose(weights, [[1.0], [1 / 3]] if k == 1 else [[1.0, 0.0], [0.5, 0.5]], rtol=1e-4)

    def test_softmax_of_chosen(self):
        # log 1, 2, 5: over the two chosen 5/7 and 2/7; alone, the probability among all, 5/8.
        logits = tf.math.log([[1.0, 2.0, 5.0]])
        self.assertAllClose(softmax_of_chosen(tf.math.log([[5.0, 2.0]]), logits), [[5 / 7, 2 / 7]])
        self.assertAllClose(softmax_of_chosen(tf.math.log([[5.0]]), logits), [[5 / 8]])
        self.assertAllClose(softmax_of_chosen(tf.math.log([[5.0, 2.0]]), logits, "all"), [[5 / 8, 2 / 8]])
