import hypothesis
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from tests import references
from tests.base import TestCase
from tf_moe import losses
from tf_moe.losses import cv_squared, importance, smooth_load, switch_loss, threshold_loss, z_loss

FEW = hypothesis.settings(max_examples=20, deadline=None, database=None)


def gradient_of(function, *arrays):
    """Gradients of a float32 scalar function."""
    tensors = [tf.constant(a, tf.float32) for a in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        y = function(*tensors)
    return tape.gradient(y, tensors)


class CVSquaredTest(TestCase):
    def test_by_hand(self):
        # Mean 2, squared distances 1, 1, 4, and their mean (not their sum over n - 1 = 2) is 2; over 2^2.
        self.assertAllClose(cv_squared([1.0, 1.0, 4.0]), 0.5)
        self.assertAllClose(cv_squared([3.0, 3.0, 3.0, 3.0]), 0.0)
        # All on one of n experts: the worst there is, n - 1.
        self.assertAllClose(cv_squared([0.0, 5.0, 0.0, 0.0]), 3.0)

    def test_values_and_gradients(self):
        for shape in ((1,), (7,), (3, 4)):
            x = self.rng.uniform(0.1, 3.0, shape)
            self.assertAllClose(cv_squared(x), references.cv_squared(x), rtol=1e-5, atol=1e-7)
            (slope,) = gradient_of(cv_squared, x)
            self.assertAllClose(slope, references.gradients(references.cv_squared, [x])[0], rtol=1e-3, atol=1e-5)

    def test_does_not_depend_on_the_scale(self):
        x = self.rng.uniform(0.1, 3.0, 9)
        for scale in (1e-25, 1e-6, 1e6, 1e25):
            self.assertAllClose(cv_squared(x * scale), references.cv_squared(x), rtol=1e-4)
            (slope,) = gradient_of(cv_squared, x * scale)
            expected = references.gradients(references.cv_squared, [x])[0]
            self.assertAllClose(slope * scale, expected, rtol=1e-3, atol=1e-5)

    def test_zeros_give_zero_and_finite_gradient(self):
        self.assertEqual(float(cv_squared(tf.zeros(5))), 0.0)
        self.assertAllEqual(gradient_of(cv_squared, np.zeros(5))[0], np.zeros(5))

    def test_is_float32_for_any_input(self):
        for dtype in (tf.bfloat16, tf.float16, tf.float64, tf.int32):
            value = cv_squared(tf.constant([1, 1, 4], dtype))
            self.assertEqual(value.dtype, tf.float32)
            self.assertAllClose(value, 0.5)


class ImportanceTest(TestCase):
    def test_sums_each_expert_over_the_tokens_in_float32(self):
        gates = np.array([[0.25, 0.75, 0.0], [0.0, 0.5, 0.5]])
        for dtype in (tf.float32, tf.bfloat16):
            value = importance(tf.constant(gates, dtype))
            self.assertEqual(value.dtype, tf.float32)
            self.assertAllEqual(value, [0.25, 1.25, 0.5])
        self.assertAllEqual(importance(tf.zeros([0, 3])), np.zeros(3))

    def test_gradient_is_one_for_each_gate(self):
        (slope,) = gradient_of(lambda g: tf.reduce_sum(importance(g) * [1.0, 2.0, 3.0]), np.zeros((2, 3)))
        self.assertAllEqual(slope, [[1, 2, 3], [1, 2, 3]])


class SmoothLoadTest(TestCase):
    def arrays(self, tokens, experts):
        clean = self.rng.standard_normal((tokens, experts))
        stddev = self.rng.uniform(0.2, 2.0, (tokens, experts))
        return clean, clean + stddev * self.rng.standard_normal((tokens, experts)), stddev

    def test_by_hand(self):
        # One token, three experts, k = 1, noisy logits 1, 2, 3. Expert 2 leads: its rival is expert 1, at 2.
        # The rival of experts 0 and 1 is expert 2, at 3. All clean logits are 2, all deviations 1:
        # Phi(2 - 3), Phi(2 - 3), Phi(2 - 2).
        load = smooth_load([[2.0, 2.0, 2.0]], [[1.0, 2.0, 3.0]], tf.ones([1, 3]), k=1)
        self.assertAllClose(load, [0.15865525, 0.15865525, 0.5])
        # k = 2: experts 1 and 2 are in, and fall out below expert 0, at 1. Expert 0 gets in above expert 1, at 2.
        load = smooth_load([[2.0, 2.0, 2.0]], [[1.0, 2.0, 3.0]], tf.ones([1, 3]), k=2)
        self.assertAllClose(load, [0.5, 0.84134475, 0.84134475])

    def test_values_and_gradients(self):
        for tokens, experts in ((5, 4), (1, 2), (3, 7)):
            for k in range(1, experts + 1):
                clean, noisy, stddev = self.arrays(tokens, experts)
                c = self.rng.standard_normal(experts)

                def reference(clean, noisy, stddev, c=c, k=k):
                    return references.load_probabilities(clean, noisy, stddev, k).sum(axis=0) @ c

                def loss(clean, noisy, stddev, c=c, k=k):
                    return tf.reduce_sum(smooth_load(clean, noisy, stddev, k) * tf.constant(c, tf.float32))

                with self.subTest(experts=experts, k=k):
                    load = smooth_load(clean, noisy, stddev, k)
                    expected = references.load_probabilities(clean, noisy, stddev, k).sum(axis=0)
                    self.assertEqual(load.dtype, tf.float32)
                    self.assertAllClose(load, expected, rtol=1e-4, atol=1e-5)
                    expected = references.gradients(reference, [clean, noisy, stddev])
                    for slope, wanted in zip(gradient_of(loss, clean, noisy, stddev), expected, strict=True):
                        # With k = E the load is the constant T, and no gradient at all means zeros.
                        slope = np.zeros_like(wanted) if slope is None else slope
                        self.assertAllClose(slope, wanted, rtol=2e-3, atol=2e-5)

    def test_estimates_the_expected_count(self):
        # 4000 tokens that differ in their noise alone: the estimate is unbiased, so close to the count.
        clean = np.tile([0.5, 0.0, -0.5, 1.0], (4000, 1))
        stddev = np.tile([1.0, 0.5, 2.0, 1.0], (4000, 1))
        noisy = clean + stddev * self.rng.standard_normal((4000, 4))
        count = np.bincount(np.argsort(-noisy, axis=1)[:, :2].ravel(), minlength=4)
        load = smooth_load(clean, noisy, stddev, 2)
        self.assertAllClose(load, count, atol=6 * 4000**0.5 / 2)
        self.assertAllClose(load, references.load_probabilities(clean, noisy, stddev, 2).sum(axis=0), rtol=1e-4)

    def test_k_of_all_experts_counts_every_token(self):
        clean, noisy, stddev = self.arrays(6, 3)
        self.assertAllEqual(smooth_load(clean, noisy, stddev, 3), [6, 6, 6])

    def test_ties(self):
        # All equal: each one's rival stands where it stands itself, so every probability is Phi(0).
        for k in (1, 2, 3):
            load = smooth_load(tf.zeros([5, 4]), tf.zeros([5, 4]), tf.ones([5, 4]), k)
            self.assertAllClose(load, np.full(4, 2.5))
        # Second place shared by experts 1 and 2, k = 2: out of the others, the second highest is 1 for all of them but
        # for expert 0, where it is 1 too.
        load = smooth_load([[2.0, 1.0, 1.0, 0.0]], [[2.0, 1.0, 1.0, 0.0]], tf.ones([1, 4]), 2)
        self.assertAllClose(load, [references.normal_cdf(z) for z in (1.0, 0.0, 0.0, -1.0)])

    def test_extremely_small_noise_is_finite(self):
        # 0 is what softplus underflows to. Where there is no noise the probability is 0, 1, or (tied) a half.
        clean = np.array([[2.0, 1.0, 1.0], [30.0, -40.0, 0.0], [0.0, 0.0, 0.0]])
        for stddev in (0.0, 1e-38, 1e-20, 1e-7):
            load = smooth_load(clean, clean, np.full((3, 3), stddev), 1)
            self.assertAllClose(load, [1 + 1 + 0.5, 0.5, 0.5])

            def loss(*arrays):
                return cv_squared(smooth_load(*arrays, 1))

            for slope in gradient_of(loss, clean, clean, np.full((3, 3), stddev)):
                self.assertTrue(np.isfinite(slope).all(), slope)

    def test_small_noise_counts(self):
        """Two experts, one deviation apart: Phi(1) and Phi(-1) at any scale."""
        for scale in (1.0, 1e-2, 1e-4):
            clean = [[scale, 0.0]]
            self.assertAllClose(smooth_load(clean, clean, [[scale, scale]], 1), [0.8413447, 0.1586553])

    def test_masked_tokens_count_nothing(self):
        clean, noisy, stddev = self.arrays(6, 4)
        mask = np.array([1, 0, 1, 1, 0, 1], bool)
        masked = smooth_load(clean, noisy, stddev, 2, mask=tf.constant(mask))
        self.assertAllClose(masked, smooth_load(clean[mask], noisy[mask], stddev[mask], 2))
        self.assertAllEqual(smooth_load(clean, noisy, stddev, 2, mask=tf.zeros(6, tf.bool)), np.zeros(4))

    def test_masked_nan_does_not_spread(self):
        clean, noisy, stddev = self.arrays(2, 3)
        clean[1] = np.nan
        load = smooth_load(clean, noisy, stddev, 1, mask=tf.constant([True, False]))
        self.assertAllClose(load, smooth_load(clean[:1], noisy[:1], stddev[:1], 1))
        slopes = gradient_of(lambda *x: smooth_load(*x, 1, mask=tf.constant([True, False]))[0], clean, noisy, stddev)
        for slope in slopes:
            self.assertAllEqual(slope[1], np.zeros(3))

    def test_shapes_that_do_not_fit(self):
        for shape in ((3,), (2, 3, 4)):
            with self.assertRaisesRegex(ValueError, r"clean_logits must be \(T, E\) with a static E"):
                smooth_load(*[tf.ones(shape)] * 3, 1)
        open_width = tf.function(lambda x: smooth_load(x, x, x, 1), [tf.TensorSpec([2, None])])
        with self.assertRaisesRegex(ValueError, r"static E. Received: clean_logits of shape \(2, None\)"):
            open_width(tf.ones([2, 3]))

    def test_wrong_k_raises(self):
        for k in (0, -1, 4):
            with self.assertRaisesRegex(ValueError, rf"1\.\.3.*Received: k={k}"):
                smooth_load(tf.zeros([2, 3]), tf.zeros([2, 3]), tf.ones([2, 3]), k)

    def test_numpys_integers_are_integers(self):
        arrays = self.arrays(5, 4)
        for kind in (np.int32, np.int64, np.uint8):
            self.assertAllEqual(smooth_load(*arrays, kind(2)), smooth_load(*arrays, 2))

    def test_xla_gives_the_same(self):
        clean, noisy, stddev = (a.astype("float32") for a in self.arrays(300, 8))
        compiled = tf.function(smooth_load, jit_compile=True)
        self.assertAllClose(compiled(clean, noisy, stddev, 3), smooth_load(clean, noisy, stddev, 3), rtol=1e-4)

    @FEW
    @hypothesis.given(
        tokens=st.integers(0, 12), experts=st.integers(1, 9), data=st.data(), seed=st.integers(0, 2**31 - 1)
    )
    def test_any_shape(self, tokens, experts, data, seed):
        k = data.draw(st.integers(1, experts))
        rng = np.random.default_rng(seed)
        clean, noise = rng.standard_normal((2, tokens, experts))
        stddev = rng.uniform(0.1, 1.0, (tokens, experts))
        noisy = clean + noise * stddev
        load = smooth_load(clean, noisy, stddev, k)
        expected = references.load_probabilities(clean, noisy, stddev, k).sum(axis=0)
        self.assertAllClose(load, expected, rtol=1e-3, atol=1e-4)


class ThresholdLossTest(TestCase):
    def test_by_hand(self):
        # Three tokens, two experts, thresholds 0.5 and 0.3.
        #   scores          above     chosen    difference   distance       product
        #   0.9 0.1         1 0       1 1       0 -1         0.4 -0.2       0    0.2
        #   0.6 0.4         1 1       0 1       1  0         0.1  0.1       0.1  0
        #   0.2 0.8         0 1       0 0       0  1        -0.3  0.5       0    0.5
        # Together 0.8, a token 0.8 / 3. By the first threshold: -(0 + 1 + 0) / 3; by the second: -(-1 + 0 + 1) / 3.
        scores = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]
        chosen = np.array([[1, 1], [0, 1], [0, 0]], bool)
        loss, slope = self.loss_and_slope(scores, [0.5, 0.3], chosen)
        self.assertAllClose(loss, 0.8 / 3)
        self.assertAllClose(slope, [-1 / 3, 0.0])
        # Without token 2 the products sum to 0.3 over two tokens; slopes -(0 + 1) / 2 and -(-1 + 0) / 2.
        loss, slope = self.loss_and_slope(scores, [0.5, 0.3], chosen, tf.constant([True, True, False]))
        self.assertAllClose(loss, 0.15)
        self.assertAllClose(slope, [-0.5, 0.5])

    def loss_and_slope(self, scores, thresholds, chosen, mask=None):
        thresholds = tf.constant(thresholds, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(thresholds)
            loss = threshold_loss(scores, thresholds, chosen, mask)
        return loss, tape.gradient(loss, thresholds)

    def test_values_and_gradients(self):
        for tokens, experts in ((1, 1), (7, 4)):
            scores = self.rng.uniform(0, 1, (tokens, experts))
            thresholds = self.rng.uniform(0, 1, experts)
            chosen = self.rng.integers(0, 2, (tokens, experts)).astype(bool)
            loss, slope = self.loss_and_slope(scores, thresholds, chosen)
            self.assertEqual(loss.dtype, tf.float32)
            self.assertAllClose(loss, references.threshold_loss(scores, thresholds, chosen))

            def reference(thresholds, scores=scores, chosen=chosen):
                return references.threshold_loss(scores, thresholds, chosen)

            self.assertAllClose(slope, references.gradients(reference, [thresholds])[0], rtol=1e-4, atol=1e-5)

    def test_positive_where_the_masks_differ(self):
        for _ in range(20):
            scores, thresholds = self.rng.uniform(0, 1, (9, 5)), self.rng.uniform(0, 1, 5)
            chosen = scores > thresholds
            chosen[self.rng.integers(9), self.rng.integers(5)] ^= True
            self.assertGreater(float(self.loss_and_slope(scores, thresholds, chosen)[0]), 0.0)

    def test_masked_tokens_may_be_nan(self):
        scores, thresholds = self.rng.uniform(0, 1, (9, 5)), self.rng.uniform(0, 1, 5)
        chosen, mask = self.rng.random((9, 5)) < 0.5, self.rng.random(9) < 0.5
        expected, slope = self.loss_and_slope(scores[mask], thresholds, chosen[mask])
        scores[~mask] = np.nan
        loss, found = self.loss_and_slope(scores, thresholds, chosen, tf.constant(mask))
        self.assertAllClose(loss, expected)
        self.assertAllClose(found, slope)

    def test_shapes_that_do_not_fit(self):
        for shape in ((4,), (2, 1), ()):
            with self.assertRaisesRegex(ValueError, r"thresholds must be \(E,\) where scores are \(T, E\)"):
                threshold_loss(tf.zeros([2, 3]), tf.zeros(shape), tf.zeros([2, 3], tf.bool))

    def test_zero_where_the_masks_agree(self):
        scores, thresholds = self.rng.uniform(0, 1, (9, 5)), self.rng.uniform(0, 1, 5)
        loss, slope = self.loss_and_slope(scores, thresholds, scores > thresholds)
        self.assertEqual(float(loss), 0.0)
        self.assertAllEqual(slope, np.zeros(5))

    def test_no_tokens(self):
        loss, slope = self.loss_and_slope(np.zeros((0, 3)), np.ones(3), np.zeros((0, 3), bool))
        self.assertEqual(float(loss), 0.0)
        self.assertAllEqual(slope, np.zeros(3))
        mask = tf.zeros(2, tf.bool)
        loss, slope = self.loss_and_slope(np.ones((2, 3)), np.zeros(3), np.zeros((2, 3), bool), mask)
        self.assertEqual(float(loss), 0.0)
        self.assertAllEqual(slope, np.zeros(3))


class SwitchLossTest(TestCase):
    def test_by_hand(self):
        # f is 3/4 1/4, P the mean of the rows, 3/4 1/4: 2 * (9/16 + 1/16).
        self.assertAllClose(switch_loss([3.0, 1.0], [[0.6, 0.4], [0.9, 0.1]]), 1.25)
        self.assertAllClose(switch_loss([2.0, 2.0], [[0.6, 0.4], [0.9, 0.1]]), 1.0)  # even loads
        self.assertAllClose(switch_loss([0.0, 0.0, 5.0], [[0.0, 0.0, 1.0]] * 5), 3.0)  # the worst there is

    def test_gradient_is_that_of_the_probabilities_alone(self):
        load, probabilities = self.rng.uniform(0, 5, 3), self.rng.uniform(0, 1, (4, 3))
        to_load, slope = gradient_of(switch_loss, load, probabilities)
        self.assertIsNone(to_load)
        self.assertAllClose(slope, np.tile(3 * load / load.sum() / 4, (4, 1)), rtol=1e-5)

    def test_masked_tokens_count_nothing(self):
        load, p, mask = self.normal(3) ** 2, self.normal(6, 3) ** 2, np.array([1, 0, 1, 1, 0, 1], bool)
        expected = switch_loss(load, p[mask])
        p[~mask] = np.nan
        self.assertAllClose(switch_loss(load, p, tf.constant(mask)), expected)
        (slope,) = gradient_of(lambda p: switch_loss(load, p, tf.constant(mask)), p)
        self.assertAllEqual(np.isfinite(slope), np.ones((6, 3)))

    def test_no_tokens(self):
        self.assertEqual(float(switch_loss(tf.zeros(3), tf.zeros([0, 3]))), 0.0)
        self.assertEqual(float(switch_loss(tf.zeros(3), tf.zeros([2, 3]), tf.zeros(2, tf.bool))), 0.0)

    def test_wrong_shape_raises(self):
        with self.assertRaisesRegex(ValueError, r"Received: load \(2,\), probabilities \(4, 3\)"):
            switch_loss(tf.zeros(2), tf.zeros([4, 3]))


class ZLossTest(TestCase):
    def test_by_hand(self):
        # The sums of the exponentials are 8 and 1.
        logits = np.log([[1.0, 2.0, 5.0], [0.5, 0.25, 0.25]])
        self.assertAllClose(z_loss(logits), np.log(8) ** 2 / 2)
        self.assertAllClose(z_loss(logits.reshape(2, 1, 3)), np.log(8) ** 2 / 2)  # any leading dimensions
        self.assertEqual(z_loss(tf.constant(logits, tf.bfloat16)).dtype, tf.float32)

    def test_values_and_gradients(self):
        logits = 2 * self.rng.standard_normal((5, 4))
        self.assertAllClose(z_loss(logits), references.z_loss(logits), rtol=1e-5)
        expected = references.gradients(references.z_loss, [logits])[0]
        self.assertAllClose(gradient_of(z_loss, logits)[0], expected, rtol=1e-3, atol=1e-5)

    def test_masked_tokens_count_nothing_and_may_be_nan(self):
        logits, mask = self.normal(6, 4), np.array([1, 0, 1, 1, 0, 1], bool)
        expected = z_loss(logits[mask])
        logits[~mask] = np.nan
        self.assertAllClose(z_loss(logits, mask), expected)
        slope = gradient_of(lambda x: z_loss(x, mask), logits)[0].numpy()
        self.assertAllEqual(np.isfinite(slope), np.ones((6, 4)))
        self.assertAllEqual(slope[~mask], np.zeros((2, 4)))

    def test_no_tokens(self):
        self.assertEqual(float(z_loss(tf.zeros([0, 3]))), 0.0)
        self.assertEqual(float(z_loss(tf.zeros([2, 3]), tf.zeros(2, tf.bool))), 0.0)

    def test_wrong_mask_raises(self):
        with self.assertRaisesRegex(ValueError, r"mask \(3,\), inputs \(2, 4\)"):
            z_loss(tf.zeros([2, 4]), tf.ones(3, tf.bool))


class PublicTest(TestCase):
    def test_losses_of_later_papers_are_public(self):
        self.assertContainsSubset(["switch_loss", "z_loss"], losses.__all__)
