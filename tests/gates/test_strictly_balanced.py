import hypothesis
import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from tests import references
from tests.base import TestCase
from tests.gates.helpers import dense, random_weights, set_weights
from tf_moe.gates import StrictlyBalanced

FEW = hypothesis.settings(max_examples=20, deadline=None, database=None)

# Softmax of the log of these rows gives them back: three tokens, three experts.
SCORES = np.array([[0.5, 0.4, 0.1], [0.1, 0.1, 0.8], [0.3, 0.35, 0.35]])


def scores_of(x, kernel):
    return np.array([references.softmax(h) for h in np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)])


class StrictlyBalancedTest(TestCase):
    def gate(self, width, experts, k):
        """With a random kernel, the thresholds as they start."""
        gate = random_weights(StrictlyBalanced(experts, k), width, self.rng, scale=1.0)
        gate.thresholds.assign(np.full(experts, 1 - k / experts))
        return gate

    def scene(self, k):
        return set_weights(StrictlyBalanced(3, k), 3, kernel=np.log(SCORES))

    # --- training ---

    def test_by_hand(self):
        # k = 2 of 3 experts and 3 tokens: each expert takes its best 2.
        #   expert 0: tokens 0 (.5), 2 (.3);  expert 1: tokens 0 (.4), 2 (.35);  expert 2: tokens 1 (.8), 2 (.35)
        # Divided by what is left of each token: token 0 by .9, token 1 by .8, token 2 by 1.
        routing = self.scene(2)(np.eye(3, dtype="float32"), training=True)
        expected = [[5 / 9, 4 / 9, 0], [0, 0, 1], [0.3, 0.35, 0.35]]
        self.assertAllClose(dense(routing, 3), expected)
        self.assertAllClose(routing.importance, [5 / 9 + 0.3, 4 / 9 + 0.35, 1.35])
        self.assertAllEqual(routing.load, [2, 2, 2])
        self.assertAllEqual(routing.expert_index.shape, (3, 3))  # token 2 meets three

    def test_token_that_no_expert_takes(self):
        # k = 1: each expert takes its best token, 0, 0 and 1. Nobody takes token 2. With k = 1 G is S times M.
        gate = self.scene(1)
        with tf.GradientTape() as tape:
            routing = gate(np.eye(3, dtype="float32"), training=True)
            y = tf.reduce_sum(routing.combine_weights**2)
        self.assertAllClose(dense(routing, 3), [[0.5, 0.4, 0], [0, 0, 0.8], [0, 0, 0]])
        self.assertAllEqual(routing.load, [1, 1, 1])
        slope = tape.gradient(y, gate.kernel).numpy()
        self.assertTrue(np.isfinite(slope).all())
        self.assertAllEqual(slope[2], np.zeros(3))  # row 2 of the kernel is token 2's
        self.assertGreater(np.abs(slope[:2]).max(), 0.01)

    def test_logits_far_apart(self):
        """Where the softmax is 0 in float32 for all that is chosen, each is still its share of their sum."""
        gate = StrictlyBalanced(4, 2)
        gate.build((None, 1))
        for gap in (10.0, 200.0):
            gate.kernel.assign([[0, -gap, -gap, -gap]])
            routing = gate(tf.ones([4, 1]), training=True)
            # Beside expert 0, the weight of expert 2 is e^-gap, which at 200 is 0 in float32.
            self.assertAllEqual(routing.load, [2, 2, 2 if gap < 100 else 0, 2])
            self.assertAllClose(tf.reduce_sum(routing.combine_weights, axis=1), np.ones(4))
            # Expert 0 takes tokens 0 and 1, 1 takes 2 and 3, 2 takes 0 and 1, 3 takes 2 and 3.
            self.assertAllClose(dense(routing, 4)[2:], [[0, 0.5, 0, 0.5]] * 2)

    def test_token_that_no_expert_takes_of_two(self):
        # Tokens 0 and 1 please all four experts more than token 2, as far as a softmax can: k = 2, m = 2 * 4 / 4 = 2.
        scores = np.array([[0.4, 0.4, 0.1, 0.1], [0.4, 0.4, 0.1, 0.1], [0.25] * 4, [0.1, 0.1, 0.4, 0.4]])
        scores = np.vstack([scores, scores[3]])[[0, 1, 2, 4, 3]]  # five tokens: m = 2.5, rounded to 2
        gate = set_weights(StrictlyBalanced(4, 2), 5, kernel=np.log(scores))
        with tf.GradientTape() as tape:
            routing = gate(np.eye(5, dtype="float32"), training=True)
            y = tf.reduce_sum(routing.combine_weights**2 * [1.0, 2.0])
        half = [0.5, 0.5, 0, 0]
        self.assertAllClose(dense(routing, 4), [half, half, [0] * 4, half[::-1], half[::-1]])
        self.assertTrue(np.isfinite(tape.gradient(y, gate.kernel)).all())

    def test_training_values_and_gradients(self):
        for tokens, width, experts, k in ((8, 3, 4, 2), (8, 3, 4, 1), (6, 2, 3, 3), (9, 2, 6, 2), (1, 2, 3, 2)):
            with self.subTest(tokens=tokens, experts=experts, k=k):
                x, m = self.rng.standard_normal((tokens, width)), max(1, round(k * tokens / experts))
                gate = self.gate(width, experts, k)
                a, b = self.rng.standard_normal((tokens, experts)), self.rng.standard_normal(experts)

                def gates_of(kernel, x=x, m=m, k=k):
                    scores = scores_of(x, kernel)
                    mask = references.batchwise_mask(scores, m)
                    return references.masked_gates(scores, mask) if k > 1 else scores * mask

                def reference(kernel, a=a, b=b, gates_of=gates_of):
                    gates = gates_of(kernel)
                    return (a * gates).sum() + (b * gates.sum(axis=0)).sum()

                with tf.GradientTape() as tape:
                    routing = gate(x.astype("float32"), training=True)
                    y = tf.reduce_sum(tf.constant(a, tf.float32) * dense(routing, experts))
                    y += tf.reduce_sum(tf.constant(b, tf.float32) * routing.importance)
                expected = gates_of(gate.kernel)
                self.assertAllClose(dense(routing, experts), expected, rtol=1e-4, atol=1e-5)
                self.assertAllClose(routing.importance, expected.sum(axis=0), rtol=1e-4, atol=1e-5)
                self.assertAllEqual(routing.load, np.full(experts, m))
                slope = tape.gradient(y, gate.kernel)
                self.assertAllClose(
                    slope, references.gradients(reference, [gate.kernel.numpy()])[0], rtol=5e-3, atol=1e-3
                )

    def test_every_expert_receives_the_same_number(self):
        x = self.normal(24, 4)
        for experts, k in ((6, 2), (4, 1), (8, 3), (5, 2)):
            m = round(24 * k / experts)
            for name, gate, inputs in (
                ("random", self.gate(4, experts, k), x),
                ("tied", StrictlyBalanced(experts, k), x),
                ("equal tokens", self.gate(4, experts, k), np.tile(x[:1], (24, 1))),
                ("two kinds of tokens", self.gate(4, experts, k), np.tile(x[:2], (12, 1))),
            ):
                with self.subTest(name, experts=experts):
                    self.assertAllEqual(gate(inputs, training=True).load, np.full(experts, m))

    def test_untrained_every_token_meets_k_experts_in_training(self):
        for tokens, experts, k in ((24, 6, 2), (24, 4, 1), (8, 4, 3), (12, 12, 5)):
            routing = StrictlyBalanced(experts, k)(self.normal(tokens, 4), training=True)
            met = np.count_nonzero(routing.combine_weights, axis=1)
            self.assertAllEqual(met, np.full(tokens, k))
            self.assertAllClose(routing.combine_weights, np.full((tokens, k), 1 / k if k > 1 else 1 / experts))

    def test_k_of_all_experts_passes_everything(self):
        gate, x = self.gate(3, 4, 4), self.normal(7, 3)
        for training in (False, True):
            routing = gate(x, training=training)
            self.assertAllClose(dense(routing, 4), scores_of(x, gate.kernel))
            self.assertAllEqual(routing.load, [7, 7, 7, 7])

    # --- thresholds ---

    def test_thresholds_are_in_units_of_the_mean_and_start_where_untrained_scores_pass(self):
        gate = StrictlyBalanced(4, 1)
        routing = gate(self.normal(5, 3))
        self.assertAllClose(gate.thresholds, np.full(4, 0.75))
        self.assertAllEqual(routing.load, [5, 5, 5, 5])
        self.assertEqual(float(routing.loss), 0.0)

    def test_evaluation_by_hand(self):
        # Thresholds .35, .36, .2 of the scores (times 3, the number of experts, as the weight keeps them): token 0
        # passes at experts 0 and 1, tokens 1 and 2 at expert 2 alone.
        gate = self.scene(2)
        gate.thresholds.assign(3 * np.array([0.35, 0.36, 0.2]))
        routing = gate(np.eye(3, dtype="float32"))
        self.assertAllClose(dense(routing, 3), [[5 / 9, 4 / 9, 0], [0, 0, 1], [0, 0, 1]])
        self.assertAllEqual(routing.load, [1, 1, 2])
        self.assertAllClose(routing.importance, [5 / 9, 4 / 9, 2])

    def test_evaluation_against_the_reference(self):
        for k in (1, 2):
            gate, x = self.gate(3, 5, k), self.normal(9, 3)
            gate.thresholds.assign(self.rng.uniform(0.5, 2.0, 5))
            scores = scores_of(x, gate.kernel)
            mask = references.threshold_mask(scores, gate.thresholds.numpy() / 5)
            gates = references.masked_gates(scores, mask) if k > 1 else scores * mask
            routing = gate(x)
            self.assertAllClose(dense(routing, 5), gates, rtol=1e-4, atol=1e-5)
            self.assertAllEqual(routing.load, mask.sum(axis=0))

    def test_nothing_passes(self):
        gate = self.gate(3, 4, 2)
        gate.thresholds.assign(np.full(4, 5.0))
        with tf.GradientTape() as tape:
            routing = gate(self.normal(6, 3))
            y = tf.reduce_sum(routing.combine_weights) + tf.reduce_sum(routing.importance)
        self.assertAllEqual(dense(routing, 4), np.zeros((6, 4)))
        self.assertAllEqual(routing.load, np.zeros(4))
        self.assertAllEqual(tape.gradient(y, gate.kernel), np.zeros((3, 4)))

    def test_loss_and_its_gradient(self):
        gate, x = self.gate(3, 4, 2), self.normal(8, 3)
        gate.thresholds.assign(self.rng.uniform(0.5, 1.5, 4))
        scores = scores_of(x, gate.kernel)
        chosen = references.batchwise_mask(scores, 4)

        def reference(thresholds):
            return references.threshold_loss(scores, thresholds / 4, chosen)

        with tf.GradientTape() as tape:
            loss = gate(x, training=True).loss
        kernel_slope, slope = tape.gradient(loss, [gate.kernel, gate.thresholds])
        self.assertAllClose(loss, reference(gate.thresholds.numpy().astype("float64")), rtol=1e-4, atol=1e-6)
        self.assertAllClose(slope, references.gradients(reference, [gate.thresholds.numpy()])[0], rtol=1e-3, atol=1e-5)
        if kernel_slope is not None:
            self.assertAllEqual(kernel_slope, np.zeros((3, 4)))

    def test_thresholds_learn_to_let_pass_what_the_batch_chooses(self):
        for k in (1, 2):
            gate, x = self.gate(4, 8, k), self.normal(800, 4)
            gate.kernel.assign(0.5 * gate.kernel)
            optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 300))

            @tf.function
            def step(gate=gate, x=x, optimizer=optimizer):
                with tf.GradientTape() as tape:
                    loss = gate(x, training=True).loss
                optimizer.apply([tape.gradient(loss, gate.thresholds)], [gate.thresholds])
                return loss

            first = step()
            for _ in range(299):
                last = step()
            self.assertLess(float(last), 0.1 * float(first))
            self.assertAllClose(gate(x).load, np.full(8, 100 * k), rtol=0.1)

    # --- masks ---

    def test_masked_tokens_are_as_if_removed(self):
        mask = np.array([0, 1, 1, 0, 1, 1, 1, 0, 1, 0, 1, 1], bool)
        for k in (1, 2, 4):
            gate, x = self.gate(3, 4, k), self.normal(12, 3)
            gate.thresholds.assign(self.rng.uniform(0.5, 1.5, 4))
            for training in (False, True):
                with self.subTest(k=k, training=training):
                    masked, removed = (
                        gate(x, mask=tf.constant(mask), training=training),
                        gate(x[mask], training=training),
                    )
                    self.assertAllEqual(dense(masked, 4).numpy()[~mask], np.zeros((4, 4)))
                    self.assertAllClose(dense(masked, 4).numpy()[mask], dense(removed, 4))
                    self.assertAllClose(masked.importance, removed.importance)
                    self.assertAllEqual(masked.load, removed.load)
                    self.assertAllClose(masked.loss, removed.loss)
                    if training:
                        self.assertAllEqual(masked.load, np.full(4, 2 * k))

    def test_untrained_every_unmasked_token_meets_k_experts_in_training(self):
        for name, mask in (
            ("padded behind", [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
            ("padded in front", [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]),
            ("sequences of 4", [1, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0]),
        ):
            mask = np.array(mask, bool)
            for k in (1, 2):
                with self.subTest(name, k=k):
                    routing = StrictlyBalanced(4, k)(self.normal(16, 3), mask=tf.constant(mask), training=True)
                    self.assertAllEqual(routing.load, np.full(4, 2 * k))
                    met = np.count_nonzero(dense(routing, 4), axis=1)
                    self.assertAllEqual(met, np.where(mask, k, 0))

    def test_all_masked(self):
        gate = self.gate(3, 4, 2)
        for training in (False, True):
            with tf.GradientTape() as tape:
                routing = gate(self.normal(5, 3), mask=tf.zeros(5, tf.bool), training=training)
                y = tf.reduce_sum(routing.combine_weights) + routing.loss
            self.assertAllEqual(dense(routing, 4), np.zeros((5, 4)))
            self.assertAllEqual(routing.load, np.zeros(4))
            self.assertEqual(float(y), 0.0)
            for slope in tape.gradient(y, gate.trainable_variables):
                self.assertTrue(slope is None or not slope.numpy().any())

    # --- platform ---

    def test_xla_breaks_ties_the_same(self):
        gate, x, mask = StrictlyBalanced(5, 2), self.normal(40, 4), tf.constant(self.rng.integers(0, 4, 40) > 0)
        gate.build(x.shape)
        compiled = tf.function(lambda: dense(gate(x, mask=mask, training=True), 5), jit_compile=True)()
        self.assertAllClose(compiled, dense(gate(x, mask=mask, training=True), 5))

    def test_float32_under_a_policy_of_bfloat16(self):
        keras.config.set_dtype_policy("mixed_bfloat16")
        self.addCleanup(keras.config.set_dtype_policy, "float32")
        gate = self.gate(3, 4, 2)
        for training in (False, True):
            routing = gate(tf.cast(self.normal(20, 3), tf.bfloat16), training=training)
            for name in ("combine_weights", "importance", "load"):
                self.assertEqual(getattr(routing, name).dtype, tf.float32)

    def test_config(self):
        gate = StrictlyBalanced(5, 2, kernel_initializer="ones", seed=3)
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(gate))
        self.assertEqual((again.num_experts, again.k, again.seed, again.name), (5, 2, 3, "gate"))
        self.assertEqual(again.get_config(), gate.get_config())
        again.build((None, 3))
        self.assertAllEqual(again.kernel, np.ones((3, 5)))

    def test_wrong_numbers_raise(self):
        for experts, k in ((0, 1), (4, 0), (4, 5), ((2, 2), 1), (4, (1, 1))):
            with self.subTest(experts=experts, k=k), self.assertRaisesRegex(ValueError, "Received: "):
                StrictlyBalanced(experts, k)

    @FEW
    @hypothesis.given(
        tokens=st.integers(0, 12),
        width=st.integers(1, 5),
        experts=st.integers(1, 9),
        training=st.booleans(),
        data=st.data(),
        seed=st.integers(0, 2**31 - 1),
    )
    def test_any_shape(self, tokens, width, experts, training, data, seed):
        k = data.draw(st.integers(1, experts))
        rng = np.random.default_rng(seed)
        mask = None if data.draw(st.booleans()) else rng.integers(0, 2, tokens).astype(bool)
        gate = random_weights(StrictlyBalanced(experts, k), width, rng)
        gate.thresholds.assign(rng.uniform(0.3, 2.0, experts))
        x = rng.standard_normal((tokens, width)).astype("float32")
        routing = gate(x, mask=None if mask is None else tf.constant(mask), training=training)
        kept = np.ones(tokens, bool) if mask is None else mask
        gates, index = dense(routing, experts).numpy(), routing.expert_index.numpy()
        self.assertTrue(((index >= 0) & (index < experts)).all())
        self.assertTrue(all(len(set(row)) == len(row) for row in index))
        self.assertAllEqual(gates[~kept], np.zeros((tokens - kept.sum(), experts)))
        if k > 1:
            taken = gates.any(axis=1)
            self.assertAllClose(gates[taken].sum(axis=1), np.ones(taken.sum()))
        self.assertAllClose(routing.importance, gates.sum(axis=0), atol=1e-5)
        self.assertAllEqual(routing.load, np.count_nonzero(gates, axis=0))
        self.assertGreaterEqual(float(routing.loss), 0.0)
        if training:
            m = np.clip(np.round(k * kept.sum() / experts), min(1, kept.sum()), kept.sum())
            self.assertAllEqual(routing.load, np.full(experts, m))
