import hypothesis
import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from tests import references
from tests.base import TestCase
from tests.gates.helpers import coefficients_for, dense, fix_noise, measure, random_weights, set_weights
from tf_moe.gates import Hierarchical, NoisyTopK
from tf_moe.losses import cv_squared

FEW = hypothesis.settings(max_examples=15, deadline=None, database=None)
WEIGHTS = ("kernel", "noise_kernel", "group_kernel", "group_noise_kernel")


class HierarchicalTest(TestCase):
    def gate(self, width, num_experts, k, **kwargs):
        return random_weights(Hierarchical(num_experts, k, **kwargs), width, self.rng)

    def noises(self, tokens, num_experts, k):
        """For both levels: (T, a) and (T, k0, b)."""
        return self.rng.standard_normal((tokens, num_experts[0])), self.rng.standard_normal(
            (tokens, k[0], num_experts[1])
        )

    def fix(self, gate, noises):
        first, second = noises
        fix_noise(gate, first, second.reshape(-1, second.shape[-1]))

    def values_of(self, gate):
        return [getattr(gate, name).numpy().astype("float64") for name in WEIGHTS]

    # --- the formulas ---

    def test_by_hand(self):
        # Three tokens, groups of (0 1), (2 3), (4 5), one group and one expert of it for each token, at evaluation.
        # Unit vectors again: row t of a kernel is token t's logits.
        #   token  groups        weight        experts          weight     index
        #   0      log 1 2 1     2 / 4         group 1: log 3 1  3 / 4     2
        #   1      log 1 1 8     8 / 10        group 2: log 1 4  4 / 5     5
        #   2      log 3 1 1     3 / 5         group 0: log 1 1  1 / 2     0 or 1
        log = np.log
        group_kernel = np.zeros((3, 3, 2))
        group_kernel[1, 0], group_kernel[2, 1] = log([3, 1]), log([1, 4])
        gate = set_weights(
            Hierarchical((3, 2), (1, 1)), 3, kernel=log([[1, 2, 1], [1, 1, 8], [3, 1, 1]]), group_kernel=group_kernel
        )
        routing = gate(np.eye(3, dtype="float32"))
        self.assertAllEqual(routing.expert_index[:2], [[2], [5]])
        self.assertAllClose(routing.combine_weights, [[2 / 4 * 3 / 4], [8 / 10 * 4 / 5], [3 / 5 * 1 / 2]])
        tied = int(routing.expert_index[2, 0])
        self.assertIn(tied, (0, 1))
        importance, load = np.array([0, 0, 0.375, 0, 0, 0.64]), np.array([0, 0, 1.0, 0, 0, 1])
        importance[tied], load[tied] = 0.3, 1
        self.assertAllClose(routing.importance, importance)
        self.assertAllEqual(routing.load, load)

    def test_load_by_hand(self):
        # Two groups of two, one of each; without any kernel or noise all logits are 0 and all probabilities Phi(0).
        # Both tokens tie into group 0 (noise, not evaluation, so the lowest index): load of group 0 is 2 * 1/2 = 1, of
        # group 1 too. In group 0 both experts have 2 * 1/2 = 1 over |X^(0)| = 2, so 1 * 1/2. Group 1 has no tokens: 0.
        gate = set_weights(Hierarchical((2, 2), (1, 1)), 3)
        fix_noise(gate, np.zeros((2, 2)))
        self.assertAllClose(gate(self.normal(2, 3), training=True).load, [0.5, 0.5, 0, 0])

    def test_training_values_and_gradients(self):
        for tokens, width, num_experts, k in (
            (6, 2, (3, 4), (2, 2)),
            (5, 2, (3, 2), (1, 1)),
            (4, 3, (2, 3), (2, 1)),
            (4, 2, (4, 2), (1, 2)),
            (3, 2, (2, 2), (2, 2)),
        ):
            with self.subTest(num_experts=num_experts, k=k):
                total = num_experts[0] * num_experts[1]
                x, noises = self.rng.standard_normal((tokens, width)), self.noises(tokens, num_experts, k)
                gate = self.gate(width, num_experts, k)
                self.fix(gate, noises)
                weights = self.values_of(gate)
                a, b, c = coefficients = coefficients_for(self.rng, tokens, total)

                def reference(*weights, x=x, noises=noises, k=k, a=a, b=b, c=c):
                    gates, importance, load = references.hierarchical(x, *weights, noises, k)
                    return (a * gates).sum() + (b * importance).sum() + (c * load).sum()

                gates, importance, load = references.hierarchical(x, *weights, noises, k)
                routing = gate(x.astype("float32"), training=True)
                self.assertAllEqual(routing.expert_index.shape, (tokens, k[0] * k[1]))
                self.assertAllClose(dense(routing, total), gates, rtol=1e-4, atol=1e-5)
                self.assertAllClose(routing.importance, importance, rtol=1e-4, atol=1e-5)
                self.assertAllClose(routing.load, load, rtol=1e-4, atol=1e-4)

                value, slopes = measure(gate, x, total, coefficients, training=True)
                slopes = dict(zip([w.name for w in gate.trainable_variables], slopes, strict=True))
                self.assertAllClose(value, reference(*weights), rtol=1e-3, atol=1e-3)
                for name, expected in zip(WEIGHTS, references.gradients(reference, weights), strict=True):
                    slope = np.zeros_like(expected) if slopes[name] is None else slopes[name]
                    self.assertAllClose(slope, expected, rtol=5e-3, atol=1e-3, msg=name)

    def test_every_weight_learns_from_the_load(self):
        # The sum of the second level's loads alone would give the first level nothing.
        gate = self.gate(3, (4, 4), (2, 2))
        with tf.GradientTape() as tape:
            loss = cv_squared(gate(self.normal(20, 3), training=True).load)
        for weight, slope in zip(gate.trainable_variables, tape.gradient(loss, gate.trainable_variables), strict=True):
            self.assertGreater(float(tf.reduce_max(tf.abs(slope))), 1e-5, weight.name)

    def test_is_two_levels_of_flat_gates(self):
        tokens, (a, b), (k0, k1) = 12, (4, 5), (2, 3)
        x, noises = self.normal(tokens, 3), self.noises(tokens, (a, b), (k0, k1))
        gate = self.gate(3, (a, b), (k0, k1))
        for training in (False, True):
            self.fix(gate, noises)
            routing = gate(x, training=training)

            primary = set_weights(NoisyTopK(a, k0), 3, kernel=gate.kernel, noise_kernel=gate.noise_kernel)
            fix_noise(primary, noises[0])
            first = primary(x, training=training)
            gates, load = np.zeros((tokens, a, b)), np.zeros((a, b))
            for i in range(a):
                inside, rank = np.nonzero(first.expert_index.numpy() == i)
                secondary = set_weights(
                    NoisyTopK(b, k1), 3, kernel=gate.group_kernel[i], noise_kernel=gate.group_noise_kernel[i]
                )
                fix_noise(secondary, noises[1][inside, rank])
                second = secondary(x[inside], training=training)
                gates[inside, i] = first.combine_weights.numpy()[inside, rank][:, None] * dense(second, b).numpy()
                load[i] = second.load
                if training and len(inside):
                    load[i] *= first.load[i] / len(inside)
            self.assertAllClose(dense(routing, a * b), gates.reshape(tokens, a * b))
            self.assertAllClose(routing.importance, gates.sum(axis=0).ravel(), rtol=1e-5)
            self.assertAllClose(routing.load, load.ravel(), rtol=1e-4, atol=1e-5)

    def test_evaluation_counts(self):
        for num_experts, k in (((3, 4), (2, 2)), ((3, 4), (1, 1)), ((2, 3), (2, 3))):
            total = num_experts[0] * num_experts[1]
            gate, x = self.gate(3, num_experts, k), self.normal(9, 3)
            routing = gate(x)
            self.assertAllEqual(routing.load, np.bincount(routing.expert_index.numpy().ravel(), minlength=total))
            zero = np.zeros((9, num_experts[0])), np.zeros((9, k[0], num_experts[1]))
            weights = self.values_of(gate)
            gates, importance, _ = references.hierarchical(x.astype("float64"), *weights, zero, k)
            self.assertAllClose(dense(routing, total), gates, rtol=1e-4, atol=1e-5)
            self.assertAllClose(routing.importance, importance, rtol=1e-4, atol=1e-5)

    # --- weights and noise ---

    def test_starts_at_zero(self):
        gate = Hierarchical((4, 5), (2, 1))
        gate.build((None, 3))
        shapes = {w.name: tuple(w.shape) for w in gate.trainable_variables}
        expected = {"kernel": (3, 4), "noise_kernel": (3, 4)}
        self.assertEqual(shapes, {**expected, "group_kernel": (4, 3, 5), "group_noise_kernel": (4, 3, 5)})
        for weight in gate.trainable_variables:
            self.assertAllEqual(weight, np.zeros(weight.shape))

    def test_initializers_see_one_group_at_a_time(self):
        gate = Hierarchical((64, 30), (1, 1), kernel_initializer="glorot_uniform", noise_kernel_initializer="ones")
        gate.build((None, 50))
        self.assertAllClose(np.std(gate.group_kernel), (2 / 80) ** 0.5, rtol=0.05)
        self.assertNotAllEqual(gate.group_kernel[0], gate.group_kernel[1])
        self.assertAllEqual(gate.noise_kernel, np.ones((50, 64)))
        self.assertAllEqual(gate.group_noise_kernel, np.ones((64, 50, 30)))

    def test_a_seeded_initializer_gives_no_two_matrices_the_same_numbers(self):
        """Of as many groups as experts in each, where both levels' matrices have one shape."""
        gate = Hierarchical((4, 4), (2, 2), kernel_initializer=keras.initializers.GlorotUniform(seed=7))
        gate.build((None, 64))
        matrices = np.reshape([gate.kernel, *gate.group_kernel.numpy()], (5, -1))
        self.assertAllClose(np.corrcoef(matrices), np.eye(5), atol=0.4)  # over six standard deviations

    def test_seed(self):
        x = self.normal(50, 3)

        def stream(seed):
            gate = Hierarchical((4, 4), (2, 2), seed=seed)
            return [gate(x, training=True).expert_index.numpy().tolist() for _ in range(2)]

        first = stream(5)
        self.assertEqual(first, stream(5))
        self.assertNotEqual(first, stream(6))
        self.assertNotEqual(stream(None), stream(None))
        self.assertNotEqual(first[0], first[1])

    def test_noise_of_both_levels_differs(self):
        # As many groups as experts in each: with one noise for both, group i would always come with expert i.
        index = Hierarchical((8, 8), (1, 1))(self.normal(800, 3), training=True).expert_index.numpy()
        self.assertAllInRange(np.mean(index // 8 == index % 8), 0.03, 0.3)

    # --- evaluation ---

    def test_untrained_gate_spreads_tokens_at_evaluation(self):
        for num_experts, k in (((8, 8), (2, 2)), ((8, 8), (1, 1)), ((4, 16), (2, 2)), ((6, 4), (1, 2))):
            with self.subTest(num_experts=num_experts):
                total = num_experts[0] * num_experts[1]
                load = Hierarchical(num_experts, k)(self.normal(6400, 32)).load.numpy()
                self.assertEqual(load.sum(), 6400 * k[0] * k[1])
                self.assertGreater(load.min(), 0.5 * 6400 * k[0] * k[1] / total)
                self.assertLess(load.max(), 1.6 * 6400 * k[0] * k[1] / total)

    def test_a_choice_at_evaluation_depends_on_its_token_alone(self):
        x = self.normal(30, 8)
        order = self.rng.permutation(30)
        for gate in (Hierarchical((4, 5), (2, 2)), self.gate(8, (4, 5), (2, 2))):
            together, shuffled, alone = gate(x), gate(x[order]), gate(x[17:18])
            self.assertAllEqual(tf.gather(together.expert_index, order), shuffled.expert_index)
            self.assertAllClose(tf.gather(together.combine_weights, order), shuffled.combine_weights)
            self.assertAllEqual(together.expert_index[17], alone.expert_index[0])
            self.assertAllClose(together.combine_weights[17], alone.combine_weights[0])

    def test_finite_losses_and_gradients_at_evaluation(self):
        for k in ((1, 1), (2, 2)):
            for gate in (Hierarchical((3, 4), k), self.gate(3, (3, 4), k)):
                with tf.GradientTape() as tape:
                    routing = gate(self.normal(9, 3))
                    loss = cv_squared(routing.importance) + cv_squared(routing.load)
                self.assertTrue(np.isfinite(loss))
                for slope in tape.gradient(loss, [gate.kernel, gate.group_kernel]):
                    self.assertTrue(np.isfinite(slope).all())

    def test_k_of_1_teaches_both_levels(self):
        gate = self.gate(3, (3, 4), (1, 1))
        for training in (False, True):
            with tf.GradientTape() as tape:
                y = tf.reduce_sum(gate(self.normal(9, 3), training=training).combine_weights)
            for slope in tape.gradient(y, [gate.kernel, gate.group_kernel]):
                self.assertGreater(float(tf.reduce_max(tf.abs(slope))), 1e-4)

    # --- masks and empty groups ---

    def test_masked_tokens_are_as_if_removed(self):
        mask = np.array([0, 1, 1, 0, 1, 1, 1, 0], bool)
        for k in ((1, 1), (2, 2), (3, 2)):
            x, noises = self.normal(8, 3), self.noises(8, (3, 4), k)
            coefficients = coefficients_for(self.rng, 8, 12)
            for training in (False, True):
                with self.subTest(k=k, training=training):
                    gate = self.gate(3, (3, 4), k)
                    self.fix(gate, noises)
                    masked = gate(x, mask=tf.constant(mask), training=training)
                    _, masked_slopes = measure(gate, x, 12, coefficients, mask=tf.constant(mask), training=training)
                    self.fix(gate, [n[mask] for n in noises])
                    removed = gate(x[mask], training=training)
                    coefficients_left = (coefficients[0][mask], *coefficients[1:])
                    _, slopes = measure(gate, x[mask], 12, coefficients_left, training=training)
                    self.assertAllEqual(masked.combine_weights.numpy()[~mask], np.zeros((3, k[0] * k[1])))
                    self.assertAllEqual(masked.expert_index.numpy()[mask], removed.expert_index)
                    self.assertAllClose(masked.combine_weights.numpy()[mask], removed.combine_weights)
                    self.assertAllClose(masked.importance, removed.importance)
                    self.assertAllClose(masked.load, removed.load, rtol=1e-5, atol=1e-5)
                    for slope, expected in zip(masked_slopes, slopes, strict=True):
                        if expected is not None:
                            self.assertAllClose(slope, expected, rtol=1e-4, atol=1e-5)

    def test_all_masked(self):
        # Few and many tokens: the second level computes them in different ways.
        for tokens, training in ((1, False), (1, True), (5, False), (5, True), (100, True)):
            gate = self.gate(3, (3, 4), (2, 2))
            with self.subTest(tokens=tokens, training=training):
                with tf.GradientTape() as tape:
                    routing = gate(self.normal(tokens, 3), mask=tf.zeros(tokens, tf.bool), training=training)
                    loss = cv_squared(routing.importance) + cv_squared(routing.load)
                    loss += tf.reduce_sum(routing.combine_weights)
                self.assertAllEqual(routing.combine_weights, np.zeros((tokens, 4)))
                self.assertAllEqual(routing.importance, np.zeros(12))
                self.assertAllEqual(routing.load, np.zeros(12))
                for slope in tape.gradient(loss, [gate.kernel, gate.group_kernel]):
                    self.assertAllEqual(slope, np.zeros(slope.shape))

    def test_groups_without_tokens(self):
        # All 6 tokens go to group 1 of 3: nothing divides by the others' sizes.
        x, noises = self.rng.standard_normal((6, 2)), self.noises(6, (3, 4), (1, 2))
        x[:, 0] = 1.0
        gate = self.gate(2, (3, 4), (1, 2))
        gate.kernel.assign([[0, 9, 0], [0, 0, 0]])
        gate.noise_kernel.assign(np.zeros((2, 3)))
        self.fix(gate, noises)
        gates, importance, load = references.hierarchical(x, *self.values_of(gate), noises, (1, 2))
        routing = gate(x.astype("float32"), training=True)
        self.assertAllEqual(routing.expert_index // 4, np.ones((6, 2)))
        self.assertAllClose(dense(routing, 12), gates, rtol=1e-4, atol=1e-5)
        self.assertAllClose(routing.load, load, rtol=1e-4, atol=1e-5)
        self.assertAllClose(routing.importance, importance, rtol=1e-4, atol=1e-5)
        _, slopes = measure(gate, x, 12, coefficients_for(self.rng, 6, 12), training=True)
        for slope in slopes:
            self.assertTrue(np.isfinite(slope).all())

    # --- platform ---

    def test_float32_under_a_policy_of_bfloat16(self):
        keras.config.set_dtype_policy("mixed_bfloat16")
        self.addCleanup(keras.config.set_dtype_policy, "float32")
        gate, x = self.gate(3, (3, 4), (2, 2)), tf.cast(self.normal(20, 3), tf.bfloat16)
        for training in (False, True):
            routing = gate(x, training=training)
            for name in ("combine_weights", "importance", "load"):
                self.assertEqual(getattr(routing, name).dtype, tf.float32)

    def test_config(self):
        gate = Hierarchical((4, 5), (2, 1), kernel_initializer="glorot_uniform", seed=3)
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(gate))
        self.assertEqual((again.num_experts, again.k, again.seed, again.name), ((4, 5), (2, 1), 3, "gate"))
        self.assertEqual(again.get_config(), gate.get_config())
        again.build((None, 3))
        self.assertGreater(float(tf.math.reduce_std(again.group_kernel)), 0.05)

    def test_wrong_numbers_raise(self):
        for num_experts, k, message in (
            (16, (2, 2), r"num_experts must be a pair.*Received: num_experts=16"),
            ((4, 4), 2, r"k must be a pair.*Received: k=2"),
            ((4, 4, 4), (2, 2), r"num_experts must be a pair"),
            ((4, 4), (2,), r"k must be a pair"),
            ((4, 4), (5, 1), r"Received: k=5, num_experts\[0\]=4"),
            ((4, 4), (1, 5), r"Received: k=5, num_experts\[1\]=4"),
            ((4, 4), (0, 1), r"Received: k=0"),
            ((4, 4), (1, 0), r"Received: k=0"),
            ((0, 4), (1, 1), r"Received: num_experts\[0\]=0"),
            ((4, 2.0), (1, 1), r"Received: num_experts\[1\]=2.0"),
        ):
            with self.subTest(num_experts=num_experts, k=k), self.assertRaisesRegex(ValueError, message):
                Hierarchical(num_experts, k)

    @FEW
    @hypothesis.given(
        tokens=st.integers(0, 12),
        width=st.integers(1, 6),
        groups=st.integers(1, 5),
        experts=st.integers(1, 5),
        training=st.booleans(),
        data=st.data(),
        seed=st.integers(0, 2**31 - 1),
    )
    def test_any_shape(self, tokens, width, groups, experts, training, data, seed):
        k = data.draw(st.integers(1, groups)), data.draw(st.integers(1, experts))
        total, choices = groups * experts, k[0] * k[1]
        rng = np.random.default_rng(seed)
        mask = None if data.draw(st.booleans()) else rng.integers(0, 2, tokens).astype(bool)
        gate = random_weights(Hierarchical((groups, experts), k), width, rng)
        x = rng.standard_normal((tokens, width)).astype("float32")
        routing = gate(x, mask=None if mask is None else tf.constant(mask), training=training)
        kept = np.ones(tokens, bool) if mask is None else mask
        index, weights = routing.expert_index.numpy(), routing.combine_weights.numpy()
        self.assertEqual(index.shape, (tokens, choices))
        self.assertTrue(((index >= 0) & (index < total)).all())
        self.assertTrue(all(len(set(row)) == choices for row in index[kept]))
        self.assertTrue(all(len(set(row // experts)) == k[0] for row in index[kept]))
        self.assertAllEqual(weights[~kept], np.zeros((tokens - kept.sum(), choices)))
        if min(k) > 1:
            self.assertAllClose(weights[kept].sum(axis=1), np.ones(kept.sum()))
        self.assertAllClose(routing.importance, dense(routing, total).numpy().sum(axis=0), atol=1e-5)
        if not training:
            self.assertAllEqual(routing.load, np.bincount(index[kept].ravel(), minlength=total))
