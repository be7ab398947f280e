import functools

import hypothesis
import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from tests import references
from tests.base import TestCase
from tests.gates.helpers import coefficients_for, dense, fix_noise, measure, random_weights, set_weights
from tf_moe.gates import NoisyTopK
from tf_moe.losses import cv_squared

FEW = hypothesis.settings(max_examples=20, deadline=None, database=None)


class NoisyTopKTest(TestCase):
    def gate(self, width, experts, k, **kwargs):
        return random_weights(NoisyTopK(experts, k, **kwargs), width, self.rng)

    def assert_same_routing(self, a, b, **tolerance):
        self.assertAllEqual(a.expert_index, b.expert_index)
        for name in ("combine_weights", "importance", "load"):
            self.assertAllClose(getattr(a, name), getattr(b, name), **tolerance)

    # --- the formulas ---

    def test_by_hand(self):
        # Three tokens, three experts, k = 2. Tokens are unit vectors, so that row t of the kernel is token t's logits.
        # No noise kernel: the deviation is softplus(0) = log 2, and noise is given in units of it.
        #   token  clean    noise     noisy    chosen  weights (difference 1: sigmoid(1) = 0.7310586)
        #   0      2 1 0    0  0 0    2 1 0    0 1     0.731 0.269
        #   1      0 0 0    0  1 2    0 1 2    2 1     0.731 0.269
        #   2      1 1 1    0 -1 1    1 0 2    2 0     0.731 0.269
        log2 = np.log(2)
        gate = set_weights(NoisyTopK(3, 2), 3, kernel=[[2, 1, 0], [0, 0, 0], [1, 1, 1]])
        fix_noise(gate, np.array([[0, 0, 0], [0, 1, 2], [0, -1, 1]]) / log2)
        routing = gate(np.eye(3, dtype="float32"), training=True)
        high, low = 0.7310586, 0.2689414
        self.assertAllEqual(routing.expert_index, [[0, 1], [2, 1], [2, 0]])
        self.assertAllClose(routing.combine_weights, [[high, low]] * 3)
        self.assertAllClose(routing.importance, [high + low, low + low, high + high])
        # Load: those in fall out below the best that is out; that one gets in above the worst that is in.
        #   token 0: out is 2 at 0, worst in is 1 at 1: distances 2 - 0, 1 - 0, 0 - 1
        #   token 1: out is 0 at 0, worst in is 1 at 1: distances 0 - 1, 0 - 0, 0 - 0
        #   token 2: out is 1 at 0, worst in is 0 at 1: distances 1 - 0, 1 - 1, 1 - 0
        distances = np.array([[2, 1, -1], [-1, 0, 0], [1, 0, 1]])
        expected = [sum(references.normal_cdf(d / log2) for d in column) for column in distances.T]
        self.assertAllClose(routing.load, expected)
        self.assertIsNone(routing.gates)
        self.assertEqual(float(routing.loss), 0.0)

    def test_training_values_and_gradients(self):
        for tokens, width, experts, k in ((6, 3, 5, 2), (4, 2, 4, 1), (4, 3, 3, 3), (1, 1, 2, 1), (5, 2, 7, 6)):
            with self.subTest(experts=experts, k=k):
                x, noise = self.rng.standard_normal((tokens, width)), self.rng.standard_normal((tokens, experts))
                gate = self.gate(width, experts, k)
                fix_noise(gate, noise)
                weights = [w.numpy() for w in (gate.kernel, gate.noise_kernel)]
                a, b, c = coefficients = coefficients_for(self.rng, tokens, experts)

                def reference(w_gate, w_noise, x=x, noise=noise, k=k, a=a, b=b, c=c):
                    gates, importance, load = references.noisy_top_k(x, w_gate, w_noise, noise, k)
                    return (a * gates).sum() + (b * importance).sum() + (c * load).sum()

                gates, importance, load = references.noisy_top_k(x, *weights, noise, k)
                routing = gate(x.astype("float32"), training=True)
                self.assertAllEqual(routing.expert_index.shape, (tokens, k))
                self.assertAllClose(dense(routing, experts), gates, rtol=1e-4, atol=1e-5)
                self.assertAllClose(routing.importance, importance, rtol=1e-4, atol=1e-5)
                self.assertAllClose(routing.load, load, rtol=1e-4, atol=1e-4)

                value, slopes = measure(gate, x, experts, coefficients, training=True)
                self.assertAllClose(value, reference(*weights), rtol=1e-3, atol=1e-3)
                for slope, expected in zip(slopes, references.gradients(reference, weights), strict=True):
                    slope = np.zeros_like(expected) if slope is None else slope
                    self.assertAllClose(slope, expected, rtol=5e-3, atol=1e-3)

    def test_evaluation_is_the_same_without_noise_and_counts(self):
        for experts, k in ((5, 2), (4, 1), (3, 3)):
            x, gate = self.normal(7, 3), self.gate(3, experts, k)
            routing = gate(x)
            logits = x.astype("float64") @ gate.kernel.numpy()
            gates = np.array([references.gate_values(h, k) for h in logits])
            self.assertAllClose(dense(routing, experts), gates, rtol=1e-4, atol=1e-5)
            self.assertAllClose(routing.importance, gates.sum(axis=0), rtol=1e-4, atol=1e-5)
            self.assertAllEqual(routing.load, (gates > 0).sum(axis=0))

    def test_best_expert_comes_first(self):
        gate = self.gate(4, 6, 3)
        for training in (False, True):
            weights = gate(self.normal(20, 4), training=training).combine_weights.numpy()
            self.assertAllEqual(weights, -np.sort(-weights, axis=1))

    def test_k_of_1_weighs_with_the_probability_among_all(self):
        x, gate = self.normal(6, 3), self.gate(3, 4, 1)
        probability = tf.nn.softmax(x @ gate.kernel.numpy())
        routing = gate(x)
        self.assertAllClose(routing.combine_weights[:, 0], tf.reduce_max(probability, axis=1))
        self.assertAllEqual(routing.expert_index[:, 0], tf.argmax(probability, axis=1))

    def test_k_of_1_teaches_the_gate(self):
        for training in (False, True):
            gate, x = self.gate(3, 4, 1), self.normal(6, 3)
            with tf.GradientTape() as tape:
                y = tf.reduce_sum(gate(x, training=training).combine_weights)
            self.assertGreater(float(tf.reduce_max(tf.abs(tape.gradient(y, gate.kernel)))), 1e-4)

    def test_k_of_all_experts_is_the_softmax(self):
        x, gate = self.normal(6, 3), self.gate(3, 4, 4)
        routing = gate(x)
        self.assertAllClose(dense(routing, 4), tf.nn.softmax(x @ gate.kernel.numpy()))
        self.assertAllEqual(routing.load, [6, 6, 6, 6])
        self.assertAllEqual(gate(x, training=True).load, [6, 6, 6, 6])

    # --- noise ---

    def test_starts_at_zero(self):
        gate = NoisyTopK(4, 2)
        gate.build((None, 3))
        self.assertAllEqual([w.name for w in gate.trainable_variables], ["kernel", "noise_kernel"])
        for weight in gate.trainable_variables:
            self.assertAllEqual(weight, np.zeros((3, 4)))

    def test_at_first_the_noise_spreads_the_load(self):
        gate = NoisyTopK(8, 2)
        routing = gate(self.normal(4096, 5), training=True)
        count = np.bincount(routing.expert_index.numpy().ravel(), minlength=8)
        self.assertAllInRange(count, 850, 1200)  # mean 1024, deviation 28
        self.assertAllInRange(routing.load, 850, 1200)

    def test_noise_only_in_training(self):
        gate, x = self.gate(3, 6, 2), self.normal(50, 3)
        self.assert_same_routing(gate(x), gate(x), rtol=0, atol=0)
        a, b = gate(x, training=True), gate(x, training=True)
        self.assertNotAllEqual(a.expert_index, b.expert_index)
        state = gate.seed_generator.state.numpy()
        gate(x)
        self.assertAllEqual(gate.seed_generator.state, state)

    def test_noise_is_standard_normal_and_differs_by_token_and_expert(self):
        noise = NoisyTopK(50, 2).noise(tf.constant([400, 50])).numpy()
        self.assertEqual(noise.dtype, np.float32)
        self.assertGreater(np.unique(noise).size, 0.99 * noise.size)  # float32 repeats a few by chance
        self.assertAllClose(noise.mean(), 0, atol=0.04)  # deviation 1 / sqrt(20000) = 0.007
        self.assertAllClose(noise.std(), 1, atol=0.03)
        self.assertAllClose((np.abs(noise) < 1).mean(), 0.6827, atol=0.02)

    def test_noise_kernel_scales_the_noise(self):
        # softplus(x W_noise) of -30 leaves the logits as they are; of 30 the noise alone decides.
        gate = set_weights(NoisyTopK(2, 1), 1, kernel=[[1, 0]], noise_kernel=[[-30, -30]])
        self.assertAllEqual(gate(np.ones((500, 1)), training=True).expert_index, np.zeros((500, 1)))
        gate.noise_kernel.assign([[30, 30]])
        share = tf.reduce_mean(tf.cast(gate(np.ones((500, 1)), training=True).expert_index, tf.float32))
        self.assertAllInRange(share, 0.35, 0.65)

    def test_seed(self):
        x = self.normal(50, 3)

        def stream(seed):
            gate = NoisyTopK(6, 2, seed=seed)
            return [gate(x, training=True).expert_index.numpy().tolist() for _ in range(3)]

        first = stream(5)
        self.assertEqual(first, stream(5))
        self.assertNotEqual(first, stream(6))
        self.assertNotEqual(stream(None), stream(None))
        self.assertNotEqual(first[0], first[1])
        self.assertNotEqual(first[1], first[2])

    def test_every_call_of_a_function_draws_anew(self):
        gate, x = self.gate(3, 6, 2), self.normal(50, 3)
        call = tf.function(lambda x: gate(x, training=True).expert_index)
        self.assertNotAllEqual(call(x), call(x))

    # --- evaluation ---

    def evaluation_loss(self, gate):
        """A loss with all there is, and its gradients to both kernels."""
        x = self.normal(9, 3)
        gate(x)  # builds it where it is new
        kernels = [gate.kernel, gate.noise_kernel]
        with tf.GradientTape() as tape:
            routing = gate(x)
            loss = cv_squared(routing.importance) + cv_squared(routing.load)
            loss += tf.reduce_sum(routing.combine_weights**2)
        return loss, tape.gradient(loss, kernels)

    def test_finite_losses_and_gradients_at_evaluation(self):
        for k, new in ((1, False), (2, False), (4, False), (1, True), (2, True)):
            with self.subTest(k=k, new=new):
                loss, (slope, noise_slope) = self.evaluation_loss(NoisyTopK(4, k) if new else self.gate(3, 4, k))
                self.assertTrue(np.isfinite(loss))
                self.assertTrue(np.isfinite(slope).all())
                self.assertTrue(noise_slope is None or np.isfinite(noise_slope).all())

    def test_evaluation_teaches_the_kernel_and_leaves_the_noise_alone(self):
        _, slopes = self.evaluation_loss(self.gate(3, 4, 2))
        self.assertIsNotNone(slopes[0], "kernel")
        self.assertIsNone(slopes[1], "noise_kernel")

    def test_untrained_gate_spreads_tokens_at_evaluation(self):
        for experts, k in ((8, 2), (8, 1), (64, 4)):
            for name, x in (
                ("normal", self.normal(4096, 32)),
                ("after relu", np.maximum(self.normal(4096, 32), 0)),
                ("after sigmoid", 1 / (1 + np.exp(-self.normal(4096, 32)))),
            ):
                with self.subTest(name, experts=experts):
                    routing = NoisyTopK(experts, k)(x)
                    load = routing.load.numpy()
                    self.assertEqual(load.sum(), 4096 * k)
                    self.assertGreater(load.min(), 0.5 * load.mean())
                    self.assertLess(load.max(), 1.5 * load.mean())
                    expected = 1 / k if k > 1 else 1 / experts
                    self.assertAllClose(routing.combine_weights, np.full((4096, k), expected))

    def test_equal_logits_that_are_not_zero_spread_as_well(self):
        # Every expert has the same column, as after an initializer of ones or with a shared bias in the tokens.
        for experts in (8, 64, 256):
            with self.subTest(experts=experts):
                x = self.normal(8192, 32)
                x[:, 0] = 1.0
                gate = NoisyTopK(experts, 1)
                set_weights(gate, 32, kernel=np.outer(np.eye(32)[0], np.ones(experts)))
                load = gate(x).load.numpy()
                self.assertLess(load.max(), 2.5 * load.mean())
                self.assertGreater(load.min(), 0)

    def test_a_choice_at_evaluation_depends_on_its_token_alone(self):
        x = self.normal(40, 8)
        order = self.rng.permutation(40)
        for gate in (NoisyTopK(6, 2), self.gate(8, 6, 2), NoisyTopK(6, 1)):
            all_together, shuffled = gate(x), gate(x[order])
            self.assertAllEqual(tf.gather(all_together.expert_index, order), shuffled.expert_index)
            self.assertAllClose(tf.gather(all_together.combine_weights, order), shuffled.combine_weights)
            for t in (0, 17, 39):
                alone = gate(x[t : t + 1])
                self.assertAllEqual(alone.expert_index[0], all_together.expert_index[t])
                self.assertAllClose(alone.combine_weights[0], all_together.combine_weights[t])

    # --- masks ---

    def test_masked_tokens_are_as_if_removed(self):
        for k in (1, 2, 5):
            x, noise, mask = self.normal(8, 3), self.normal(8, 5), np.array([0, 1, 1, 0, 1, 1, 1, 0], bool)
            for training in (False, True):
                with self.subTest(k=k, training=training):
                    gate = self.gate(3, 5, k)
                    fix_noise(gate, noise)
                    masked = gate(x, mask=tf.constant(mask), training=training)
                    fix_noise(gate, noise[mask])
                    removed = gate(x[mask], training=training)
                    self.assertAllEqual(masked.combine_weights.numpy()[~mask], np.zeros((3, k)))
                    self.assertAllEqual(masked.expert_index.numpy()[mask], removed.expert_index)
                    self.assertAllClose(masked.combine_weights.numpy()[mask], removed.combine_weights)
                    self.assertAllClose(masked.importance, removed.importance)
                    self.assertAllClose(masked.load, removed.load, rtol=1e-5)

    def test_masked_gradients_are_those_of_the_tokens_left(self):
        x, noise, mask = self.normal(6, 3), self.normal(6, 5), np.array([0, 1, 1, 0, 1, 1], bool)
        gate = self.gate(3, 5, 2)
        a, b, c = coefficients_for(self.rng, 6, 5)
        fix_noise(gate, noise)
        _, masked = measure(gate, x, 5, (a, b, c), mask=tf.constant(mask), training=True)
        fix_noise(gate, noise[mask])
        _, removed = measure(gate, x[mask], 5, (a[mask], b, c), training=True)
        for slope, expected in zip(masked, removed, strict=True):
            self.assertAllClose(slope, expected, rtol=1e-4, atol=1e-5)

    def test_all_masked(self):
        for training in (False, True):
            gate = self.gate(3, 4, 2)
            with tf.GradientTape() as tape:
                routing = gate(self.normal(5, 3), mask=tf.zeros(5, tf.bool), training=training)
                loss = cv_squared(routing.importance) + tf.reduce_sum(routing.combine_weights)
                loss += cv_squared(routing.load)
            self.assertAllEqual(routing.combine_weights, np.zeros((5, 2)))
            self.assertAllEqual(routing.importance, np.zeros(4))
            self.assertAllEqual(routing.load, np.zeros(4))
            self.assertEqual(float(loss), 0.0)
            self.assertAllEqual(tape.gradient(loss, gate.kernel), np.zeros((3, 4)))

    # --- platform ---

    def test_float32_under_a_policy_of_bfloat16(self):
        keras.config.set_dtype_policy("mixed_bfloat16")
        self.addCleanup(keras.config.set_dtype_policy, "float32")
        gate, x = self.gate(3, 6, 2), tf.cast(self.normal(20, 3), tf.bfloat16)
        self.assertEqual(gate.compute_dtype, "float32")
        for training in (False, True):
            routing = gate(x, training=training)
            self.assertEqual(routing.expert_index.dtype, tf.int32)
            for name in ("combine_weights", "importance", "load"):
                self.assertEqual(getattr(routing, name).dtype, tf.float32)
        logits = tf.cast(x, tf.float64).numpy() @ gate.kernel.numpy().astype("float64")
        gates = np.array([references.gate_values(h, 2) for h in logits])
        self.assertAllClose(dense(gate(x), 6), gates, rtol=1e-4, atol=1e-5)  # bfloat16 would miss by 1e-3

    def test_config(self):
        gate = NoisyTopK(5, 2, kernel_initializer="glorot_uniform", noise_kernel_initializer="ones", seed=3, name="g")
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(gate))
        self.assertIsInstance(again, NoisyTopK)
        self.assertEqual((again.num_experts, again.k, again.seed, again.name), (5, 2, 3, "g"))
        again.build((None, 4))
        self.assertGreater(float(tf.math.reduce_std(again.kernel)), 0.05)
        self.assertAllEqual(again.noise_kernel, np.ones((4, 5)))
        self.assertEqual(again.get_config(), gate.get_config())

    def test_xla_gives_the_same(self):
        # Enough tokens for it to show if XLA rounded the compared logits differently in two places.
        for k, training in ((1, True), (3, True), (3, False)):
            x, noise, mask = self.normal(500, 4), self.normal(500, 9), self.rng.integers(0, 4, 500) > 0
            gate = self.gate(4, 9, k)
            fix_noise(gate, noise)
            call = functools.partial(gate, training=training)
            compiled = tf.function(call, jit_compile=True)(x, mask=tf.constant(mask))
            plain = call(x, mask=tf.constant(mask))
            self.assert_same_routing(compiled, plain, rtol=1e-4, atol=1e-4)

    def test_xla_draws_noise_and_has_gradients(self):
        gate, x = self.gate(4, 9, 2), self.normal(30, 4)

        @tf.function(jit_compile=True)
        def step():
            with tf.GradientTape() as tape:
                routing = gate(x, training=True)
                loss = cv_squared(routing.importance) + cv_squared(routing.load)
            return routing.expert_index, tape.gradient(loss, gate.trainable_variables)

        (first, slopes), (second, _) = step(), step()
        self.assertNotAllEqual(first, second)
        for slope in slopes:
            self.assertTrue(np.isfinite(slope).all())
            self.assertGreater(float(tf.reduce_max(tf.abs(slope))), 0)

    def test_wrong_numbers_raise(self):
        for experts, k in ((0, 1), (4, 0), (4, 5), (-1, 1), (4, True), (4, 2.0), ("4", 2), ((2, 2), 1), (4, None)):
            with self.subTest(experts=experts, k=k), self.assertRaisesRegex(ValueError, "Received: "):
                NoisyTopK(experts, k)

    @FEW
    @hypothesis.given(
        tokens=st.integers(0, 12),
        width=st.integers(1, 9),
        experts=st.integers(1, 9),
        new=st.booleans(),
        training=st.booleans(),
        data=st.data(),
        seed=st.integers(0, 2**31 - 1),
    )
    def test_any_shape(self, tokens, width, experts, new, training, data, seed):
        k = data.draw(st.integers(1, experts))
        rng = np.random.default_rng(seed)
        mask = None if data.draw(st.booleans()) else rng.integers(0, 2, tokens).astype(bool)
        gate = NoisyTopK(experts, k) if new else random_weights(NoisyTopK(experts, k), width, rng)
        x = rng.standard_normal((tokens, width)).astype("float32")
        routing = gate(x, mask=None if mask is None else tf.constant(mask), training=training)
        kept = np.ones(tokens, bool) if mask is None else mask
        index, weights = routing.expert_index.numpy(), routing.combine_weights.numpy()
        self.assertEqual(index.shape, (tokens, k))
        self.assertTrue(((index >= 0) & (index < experts)).all())
        self.assertTrue(all(len(set(row)) == k for row in index))
        self.assertAllEqual(weights[~kept], np.zeros((tokens - kept.sum(), k)))
        self.assertTrue((weights[kept] > 0).all())
        if k > 1:
            self.assertAllClose(weights[kept].sum(axis=1), np.ones(kept.sum()))
        self.assertAllClose(routing.importance, dense(routing, experts).numpy().sum(axis=0), atol=1e-5)
        self.assertTrue((routing.load.numpy() >= 0).all())
        if not training:
            self.assertAllEqual(routing.load, np.bincount(index[kept].ravel(), minlength=experts))
            self.assertEqual(routing.load.numpy().sum(), k * kept.sum())
