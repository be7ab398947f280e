import weakref
from unittest import mock

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import references
from tests.base import TestCase
from tf_moe.ops import noisy_choice as module
from tf_moe.ops.chosen_probability import top_k_probability
from tf_moe.ops.noise import Noise
from tf_moe.ops.noisy_choice import noisy_top_k


def written_out(clean, noise_logits, noise, k, mask=None):
    """The same over whole matrices, as the paper writes it, with TensorFlow's gradients."""
    stddev = tf.math.softplus(noise_logits)
    noisy = clean + noise.whole(tf.shape(clean)) * stddev
    highest, index = tf.math.top_k(noisy, k + 1)
    probability = top_k_probability(clean, noisy, stddev, highest, k)
    if mask is not None:
        probability = tf.where(mask[:, None], probability, 0.0)
    return index[:, :k], highest[:, :k], tf.reduce_sum(probability, axis=0)


class NoisyTopKTest(TestCase):
    SHAPES = ((7, 5, 2), (1, 2, 1), (33, 3, 2), (40, 300, 4), (0, 4, 2))

    def setUp(self):
        super().setUp()
        # Parts of four rows, or a few: several, the last not full.
        self.enter_context(mock.patch.object(module, "_PART", 40))

    def arguments(self, tokens, experts):
        clean, noise_logits = self.normal(tokens, experts), self.normal(tokens, experts)
        return (
            tf.constant(clean),
            tf.constant(noise_logits),
            Noise(tf.constant(self.rng.integers(0, 2**31, 2), tf.int32)),
        )

    def differentiate(self, function, clean, noise_logits, *others):
        """A loss with all results in it, and its gradients."""
        rng = np.random.default_rng(3)
        with tf.GradientTape() as tape:
            tape.watch([clean, noise_logits])
            index, highest, load = function(clean, noise_logits, *others)
            loss = tf.reduce_sum(highest * rng.standard_normal(highest.shape).astype("float32"))
            loss += tf.reduce_sum(load**2 * rng.standard_normal(load.shape).astype("float32"))
        return index, highest, load, *tape.gradient(loss, [clean, noise_logits])

    def test_against_the_slow_reference(self):
        clean, noise_logits, noise = self.arguments(9, 6)
        index, highest, load = noisy_top_k(clean, noise_logits, noise, 2)
        stddev = references.softplus(np.float64(noise_logits))
        noisy = np.float64(clean) + noise.whole([9, 6]).numpy() * stddev
        self.assertAllEqual(index, [references.top_k_set(row, 2) for row in noisy])
        self.assertAllClose(highest, -np.sort(-noisy, axis=1)[:, :2], rtol=1e-5, atol=1e-5)
        expected = references.load_probabilities(np.float64(clean), noisy, stddev, 2).sum(axis=0)
        self.assertAllClose(load, expected, rtol=1e-4, atol=1e-4)

    def test_as_written_out(self):
        for tokens, experts, k in self.SHAPES:
            arguments = (*self.arguments(tokens, experts), k)
            for mask in (None, tf.constant(self.rng.random(tokens) < 0.6)):
                for wrap in (lambda f: f, tf.function):
                    with self.subTest(tokens=tokens, experts=experts, masked=mask is not None):
                        got = wrap(lambda *a: self.differentiate(noisy_top_k, *a))(*arguments, mask)
                        for a, b in zip(got, self.differentiate(written_out, *arguments, mask), strict=True):
                            self.assertAllClose(a, b, rtol=1e-4, atol=1e-4)

    def test_unknown_number_of_tokens(self):
        noise = Noise(tf.constant([1, 2]))

        @tf.function(input_signature=[tf.TensorSpec([None, 5])] * 2 + [tf.TensorSpec([None], tf.bool)])
        def loss_and_gradients(clean, noise_logits, mask):
            with tf.GradientTape() as tape:
                tape.watch([clean, noise_logits])
                index, highest, load = noisy_top_k(clean, noise_logits, noise, 2, mask)
                self.assertEqual([x.shape.as_list() for x in (index, highest, load)], [[None, 2], [None, 2], [5]])
                loss = tf.reduce_sum(highest**2) + tf.reduce_sum(load**2)
            return loss, *tape.gradient(loss, [clean, noise_logits])

        for tokens in (21, 3, 0):
            clean, noise_logits, _ = self.arguments(tokens, 5)
            mask = tf.constant(self.rng.random(tokens) < 0.6)
            with tf.GradientTape() as tape:
                tape.watch([clean, noise_logits])
                _, highest, load = written_out(clean, noise_logits, noise, 2, mask)
                loss = tf.reduce_sum(highest**2) + tf.reduce_sum(load**2)
            expected = loss, *tape.gradient(loss, [clean, noise_logits])
            for a, b in zip(loss_and_gradients(clean, noise_logits, mask), expected, strict=True):
                self.assertAllClose(a, b, rtol=1e-4, atol=1e-4)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(1, 70), st.integers(2, 20), st.data())
    def test_any_size(self, tokens, experts, data):
        arguments = (*self.arguments(tokens, experts), data.draw(st.integers(1, experts - 1)))
        got, expected = (self.differentiate(f, *arguments) for f in (noisy_top_k, written_out))
        for a, b in zip(got, expected, strict=True):
            self.assertAllClose(a, b, rtol=1e-3, atol=1e-3)

    def test_second_derivatives(self):
        clean, noise_logits, noise = self.arguments(9, 5)

        def second(function):
            with tf.GradientTape() as tape:
                tape.watch([clean, noise_logits])
                *_, d_clean, d_noise = self.differentiate(function, clean, noise_logits, noise, 2)
                loss = tf.reduce_sum(d_clean**2) + tf.reduce_sum(d_noise**2)
            return tape.gradient(loss, [clean, noise_logits])

        for got in (second(noisy_top_k), tf.function(second)(noisy_top_k)):
            for a, b in zip(got, second(written_out), strict=True):
                self.assertAllClose(a, b, rtol=1e-3, atol=1e-3)

    def test_extreme_logits(self):
        """Finite, and what they are written out: equal ones, huge ones, and noise that vanishes."""
        for clean in ([[0.0] * 4], [[1e30, -1e30, 0.0, 1.0]], [[1e34, -3e34, 0.0, 1e33]], [[3.0, 2.0, 1.0, 0.0]]):
            for noise_logits in ([[0.0] * 4], [[-100.0] * 4], [[100.0, -100.0, 0.0, -14.0]]):
                arguments = (tf.constant(clean), tf.constant(noise_logits), Noise(tf.constant([1, 2])), 2)
                got, expected = (self.differentiate(f, *arguments) for f in (noisy_top_k, written_out))
                ties = len(set(clean[0])) == 1 and max(noise_logits[0]) == -100  # no derivative is the right one
                for n, (a, b) in enumerate(zip(got, expected, strict=True)):
                    self.assertTrue(np.isfinite(a).all())
                    if n < 3 or not ties:
                        self.assertAllClose(a, b, rtol=1e-3, atol=1e-4)

    def test_no_part_is_kept_or_unset(self):
        """An eager tape holds no part of what was drawn, and what is NaN in memory is nowhere to be seen."""
        *logits, noise = self.arguments(21, 5)
        drawn, draw = [], noise.rows

        def keep(*arguments):
            numbers = draw(*arguments)
            drawn.append(weakref.ref(numbers))
            return numbers

        freed = [tf.fill([21, 5], np.nan) for _ in range(50)]
        del freed
        tf.debugging.enable_check_numerics()
        try:
            with mock.patch.object(noise, "rows", keep), tf.GradientTape() as tape:
                tape.watch(logits)
                results = noisy_top_k(*logits, noise, 2)[1:]
            self.assertEqual([one() for one in drawn], [None] * 3)
            tape.gradient(results, logits)
        finally:
            tf.debugging.disable_check_numerics()

    def test_rows_are_worked_on_in_parts(self):
        *logits, noise = self.arguments(21, 5)
        with mock.patch.object(noise, "rows", wraps=noise.rows) as draw:
            expected = noisy_top_k(*logits, noise, 2)
            self.assertEqual(
                [(int(a), int(b)) for a, b, _ in (c.args for c in draw.mock_calls)], [(0, 8), (8, 8), (16, 5)]
            )
            draw.reset_mock()
            with mock.patch.object(tf.config, "list_physical_devices", return_value=["a GPU"]):
                got = noisy_top_k(*logits, noise, 2)
            draw.assert_called_once()
        for a, b in zip(got, expected, strict=True):
            self.assertAllClose(a, b, rtol=1e-5, atol=1e-5)
