import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import references
from tests.base import TestCase
from tests.gates.helpers import dense, fix_noise, random_weights, set_weights
from tf_moe import gates
from tf_moe.losses import cv_squared


class GetTest(TestCase):
    def test_the_paper_has_these(self):
        """What each does is tested in `test_every_gate.py`."""
        self.assertContainsSubset({"noisy_top_k", "hierarchical", "strictly_balanced"}, set(gates.GATES))
        self.assertIsNone(gates.get("noisy_top_k", 4, 2).seed)

    def test_pairs_make_noisy_top_k_hierarchical(self):
        for num_experts, k in (((4, 2), (2, 1)), ([4, 2], [2, 1])):
            gate = gates.get("noisy_top_k", num_experts, k)
            self.assertIs(type(gate), gates.Hierarchical)
            self.assertEqual((gate.num_experts, gate.k), ((4, 2), (2, 1)))
        for num_experts, k in (((4, 2), 2), (8, (2, 1))):
            with self.assertRaisesRegex(ValueError, "must be a pair"):
                gates.get("noisy_top_k", num_experts, k)
        with self.assertRaisesRegex(ValueError, "has one level"):
            gates.get("strictly_balanced", (4, 2), (2, 1))

    def test_unknown_names_the_known(self):
        for identifier in ("top_k", None, 3):
            with self.assertRaisesRegex(ValueError, rf"hierarchical.*noisy_top_k.*Received: gate={identifier!r}"):
                gates.get(identifier, 4, 2)

    def test_a_gate_is_taken_as_it_is(self):
        for gate in (gates.NoisyTopK(4, 2), gates.StrictlyBalanced(4, 2)):
            self.assertIs(gates.get(gate, 4, 2), gate)
        gate = gates.Hierarchical((4, 2), (2, 1))
        self.assertIs(gates.get(gate, [4, 2], [2, 1]), gate)

    def test_k_may_be_left_to_a_gate_that_has_no_choice_of_it(self):
        self.assertEqual((gates.get("switch", 4, None).k, gates.get("dense_softmax", 4, None).k), (1, 4))
        gate = gates.Hierarchical((4, 2), (2, 1))
        self.assertIs(gates.get(gate, (4, 2), None), gate)
        for name in ("noisy_top_k", "strictly_balanced", "expert_choice", "sinkhorn", "bias_balanced", "hash"):
            with self.assertRaisesRegex(ValueError, f"gate='{name}' needs k.*Received: k=None"):
                gates.get(name, 4, None)

    def test_a_gate_for_other_numbers_raises(self):
        gate = gates.NoisyTopK(4, 2)
        for num_experts, k in ((8, 2), (4, 1), ((2, 2), (1, 2))):
            with self.assertRaisesRegex(ValueError, r"a gate for num_experts=4, k=2, in a layer with num_experts="):
                gates.get(gate, num_experts, k)

    def test_a_config_is_made_a_gate(self):
        """Whole, as `test_every_gate.py` has it, and checked as a gate is."""
        config = keras.saving.serialize_keras_object(gates.NoisyTopK(4, 2))
        self.assertIs(type(gates.get(config, 4, 2)), gates.NoisyTopK)
        with self.assertRaisesRegex(ValueError, "must be made for"):
            gates.get(config, 5, 2)


class NormalizeTest(TestCase):
    @parameterized.parameters((gates.NoisyTopK, 6, 3), (gates.NoisyTopK, 6, 1), (gates.Hierarchical, (3, 4), (2, 2)))
    def test_over_all(self, kind, num_experts, k):
        """The same choice and load; weights are the probabilities among all, and all logits learn from them."""
        chosen, over_all = (kind(num_experts, k, seed=1, normalize=n) for n in ("chosen", "all"))
        x, total = self.normal(20, 5), int(np.prod(num_experts))
        random_weights(over_all, 5, self.rng)
        chosen.build(x.shape)
        chosen.set_weights(over_all.get_weights())
        kernel = over_all.kernel.numpy().astype("float64")
        for training in (False, True):
            ours, other = over_all(x, training=training), chosen(x, training=training)  # one seed, so one noise
            self.assertAllEqual(ours.expert_index, other.expert_index)
            self.assertAllClose(ours.load, other.load, rtol=1e-5)
            self.assertAllClose(ours.importance, dense(ours, total).numpy().sum(axis=0), atol=1e-5)
        logits, gates_found = x @ kernel, dense(over_all(x), total).numpy()
        expected = np.array([references.gate_values(row, np.ravel(k)[0], "all") for row in logits])
        if kind is gates.Hierarchical:
            groups = over_all.group_kernel.numpy().astype("float64")
            second = [[references.gate_values(t @ group, k[1], "all") for group in groups] for t in x]
            expected = (expected[:, :, None] * np.array(second)).reshape(20, total)
        self.assertAllClose(gates_found, expected, rtol=1e-4, atol=1e-5)

    def test_over_all_in_training(self):
        """Over all the noisy logits."""
        x, noise = self.rng.standard_normal((8, 5)), self.rng.standard_normal((8, 6))
        gate = random_weights(gates.NoisyTopK(6, 3, normalize="all"), 5, self.rng)
        fix_noise(gate, noise)
        noisy = x @ gate.kernel.numpy() + noise * references.softplus(x @ gate.noise_kernel.numpy())
        expected = [references.gate_values(row, 3, "all") for row in noisy]
        found = dense(gate(x.astype("float32"), training=True), 6)
        self.assertAllClose(found, expected, rtol=1e-4, atol=1e-5)

    def test_over_all_in_training_on_two_levels(self):
        x, noise = self.rng.standard_normal((8, 5)), self.rng.standard_normal((8, 3))
        of_groups = self.rng.standard_normal((8, 2, 4))  # for each of a token's two groups, the best first
        gate = random_weights(gates.Hierarchical((3, 4), (2, 2), normalize="all"), 5, self.rng)
        fix_noise(gate, noise, of_groups.reshape(16, 4))
        kernel, noise_kernel, group_kernel, group_noise_kernel = (
            getattr(gate, name).numpy() for name in ("kernel", "noise_kernel", "group_kernel", "group_noise_kernel")
        )
        expected = np.zeros((8, 3, 4))
        for t in range(8):
            noisy = x[t] @ kernel + noise[t] * references.softplus(x[t] @ noise_kernel)
            weights = references.gate_values(noisy, 2, "all")
            for j, group in enumerate(np.argsort(-noisy)[:2]):
                stddev = references.softplus(x[t] @ group_noise_kernel[group])
                logits = x[t] @ group_kernel[group] + of_groups[t, j] * stddev
                expected[t, group] = weights[group] * references.gate_values(logits, 2, "all")
        found = dense(gate(x.astype("float32"), training=True), 12)
        self.assertAllClose(found, expected.reshape(8, 12), rtol=1e-4, atol=1e-5)

    def test_a_logit_that_is_not_chosen_learns(self):
        for normalize, learns in (("chosen", False), ("all", True)):
            gate = set_weights(gates.NoisyTopK(3, 2, normalize=normalize), 1, kernel=[[2.0, 1.0, 0.0]])
            with tf.GradientTape() as tape:
                y = tf.reduce_sum(gate(np.ones((1, 1), "float32")).combine_weights * [[1.0, 3.0]])
            self.assertEqual(bool(tape.gradient(y, gate.kernel)[0, 2] != 0), learns)

    def test_is_one_of_two(self):
        for kind, num_experts, k in ((gates.NoisyTopK, 4, 2), (gates.Hierarchical, (4, 2), (2, 1))):
            self.assertEqual(kind(num_experts, k).get_config()["normalize"], "chosen")
            for value in ("every", None, True, ["all"]):
                with self.assertRaisesRegex(ValueError, r"normalize must be one of \('chosen', 'all'\)"):
                    kind(num_experts, k, normalize=value)


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
