import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe import gates
from tf_moe.losses import cv_squared


class GetTest(TestCase):
    def test_every_name(self):
        for name, kind in gates.GATES.items():
            num_experts, k = ((4, 2), (2, 1)) if name == "hierarchical" else (4, 2)
            gate = gates.get(name, num_experts, k, seed=7)
            self.assertIs(type(gate), kind)
            self.assertEqual((gate.num_experts, gate.k, gate.seed), (num_experts, k, 7))
        self.assertGreaterEqual(
            set(gates.GATES), {"noisy_top_k", "hierarchical", "strictly_balanced", "bias_balanced", "hash"}
        )
        self.assertIsNone(gates.get("noisy_top_k", 4, 2).seed)

    def test_pairs_make_noisy_top_k_hierarchical(self):
        for num_experts, k in (((4, 2), (2, 1)), ([4, 2], [2, 1])):
            gate = gates.get("noisy_top_k", num_experts, k)
            self.assertIs(type(gate), gates.Hierarchical)
            self.assertEqual((gate.num_experts, gate.k), ((4, 2), (2, 1)))
        for num_experts, k in (((4, 2), 2), (8, (2, 1))):
            with self.assertRaisesRegex(ValueError, "must be a pair"):
                gates.get("noisy_top_k", num_experts, k)
        with self.assertRaisesRegex(ValueError, "positive integer"):
            gates.get("strictly_balanced", (4, 2), (2, 1))

    def test_unknown_names_the_known(self):
        for identifier in ("switch", None, 3):
            with self.assertRaisesRegex(ValueError, rf"hierarchical.*noisy_top_k.*Received: gate={identifier!r}"):
                gates.get(identifier, 4, 2)

    def test_a_gate_is_taken_as_it_is(self):
        for gate in (gates.NoisyTopK(4, 2), gates.StrictlyBalanced(4, 2)):
            self.assertIs(gates.get(gate, 4, 2), gate)
        gate = gates.Hierarchical((4, 2), (2, 1))
        self.assertIs(gates.get(gate, [4, 2], [2, 1]), gate)

    def test_a_gate_for_other_numbers_raises(self):
        gate = gates.NoisyTopK(4, 2)
        for num_experts, k in ((8, 2), (4, 1), ((2, 2), (1, 2))):
            with self.assertRaisesRegex(ValueError, r"a gate for num_experts=4, k=2, in a layer with num_experts="):
                gates.get(gate, num_experts, k)

    def test_config(self):
        for gate in (
            gates.NoisyTopK(4, 2, kernel_initializer="ones", seed=3),
            gates.Hierarchical((4, 2), (2, 1), kernel_initializer="ones", seed=3),
            gates.StrictlyBalanced(4, 2, kernel_initializer="ones", seed=3),
            gates.BiasBalanced(4, 2, kernel_initializer="ones", seed=3, bias_rate=0.1),
            gates.Hash(4, 2, seed=3),
        ):
            config = keras.saving.serialize_keras_object(gate)
            again = gates.get(config, gate.num_experts, gate.k)
            self.assertIs(type(again), type(gate))
            self.assertEqual(again.get_config(), gate.get_config())
            with self.assertRaisesRegex(ValueError, "must be made for"):
                gates.get(config, 5, 2)


class MaskTest(TestCase):
    def test_masked_tokens_may_hold_anything(self):
        """NaN in them reaches no statistic and no gradient."""
        for name in gates.GATES:
            num_experts, k = ((3, 2), (2, 1)) if name == "hierarchical" else (4, 2)
            gate = gates.get(name, num_experts, k)
            x, mask = self.normal(9, 5), np.arange(9) % 3 > 0
            x[0] = np.nan
            with tf.GradientTape() as tape:
                routing = gate(x, mask=mask, training=True)
                loss = cv_squared(routing.importance) + cv_squared(routing.load) + routing.loss
            self.assertAllEqual(routing.combine_weights[0], np.zeros(routing.combine_weights.shape[1]))
            values = [routing.importance, routing.load, *tape.gradient(loss, gate.trainable_variables)]
            for value in values:
                self.assertTrue(np.all(np.isfinite(value)), name)


class WithoutNoiseTest(TestCase):
    @parameterized.parameters((gates.NoisyTopK, 6, 2), (gates.NoisyTopK, 6, 1), (gates.Hierarchical, (3, 4), (2, 2)))
    def test_training_is_as_evaluation(self, kind, num_experts, k):
        """Same choice and load; the kernels learn from task and importance, and there are none for noise."""
        gate = kind(num_experts, k, kernel_initializer="glorot_normal", noisy=False)
        x, mask = self.normal(20, 5), self.rng.random(20) < 0.7
        with tf.GradientTape() as tape:
            training = gate(x, mask=mask, training=True)
            loss = cv_squared(training.importance) + cv_squared(training.load)
            loss += tf.reduce_sum(training.combine_weights[:, 0])
        for ours, expected in zip(training, gate(x, mask=mask), strict=True):
            if ours is not None:
                self.assertAllEqual(ours, expected)
        self.assertEqual([w.name for w in gate.weights], ["kernel", "group_kernel"][: len(gate.weights)])
        for gradient in tape.gradient(loss, gate.trainable_variables):
            self.assertAllInRange(tf.reduce_max(tf.abs(gradient)), 1e-6, 1e6)

    def test_is_in_the_config(self):
        for gate in (gates.NoisyTopK(4, 2, noisy=False), gates.Hierarchical((4, 2), (2, 1), noisy=False)):
            again = gates.get(keras.saving.serialize_keras_object(gate), gate.num_experts, gate.k)
            self.assertIs(again.noisy, False)
        with self.assertRaisesRegex(ValueError, "noisy must be True or False. Received: noisy='no'"):
            gates.NoisyTopK(4, 2, noisy="no")
