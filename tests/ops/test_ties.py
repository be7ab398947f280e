import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.ops.ties import code_tokens, top_k_spread


def order_of(logits, code):
    """Experts of one token, best first."""
    return top_k_spread(tf.constant([logits], tf.float32), tf.constant([code]), len(logits))[0].numpy().tolist()


class TopKSpreadTest(TestCase):
    def test_by_hand(self):
        # Among equals expert code mod E comes first, then the next ones, and around.
        self.assertEqual(order_of([0, 0, 0, 0], 1), [1, 2, 3, 0])
        self.assertEqual(order_of([0, 0, 0, 0], 7), [3, 0, 1, 2])
        self.assertEqual(order_of([0, 0, 0, 0], -1), [3, 0, 1, 2])
        self.assertEqual(order_of([5, 5, 5, 5], 2), [2, 3, 0, 1])
        self.assertEqual(order_of([1, 2, 1, 2], 0), [1, 3, 0, 2])
        self.assertEqual(order_of([1, 2, 1, 2], 2), [3, 1, 2, 0])
        self.assertEqual(order_of([-3], 9), [0])

    def test_clear_differences_keep_their_order(self):
        for scale in (1e-6, 1.0, 1e6):
            logits = np.float32(scale) * np.array([self.rng.permutation(9) for _ in range(50)], np.float32)
            order = top_k_spread(logits, tf.constant(self.rng.integers(-100, 100, 50), tf.int32), 9)
            self.assertAllEqual(order, np.argsort(-logits, axis=1))

    def test_the_smallest_difference_keeps_its_order(self):
        logits = np.array([[np.nextafter(np.float32(1), np.float32(0)), 1.0, 0.5]] * 3, np.float32)
        self.assertAllEqual(top_k_spread(logits, tf.range(3), 3), [[1, 0, 2]] * 3)

    def test_every_expert_is_first_for_one_code_whatever_the_ties(self):
        for experts in (2, 8, 64, 256):
            for value in (0.0, 1.0, -1.0, 3.7, 1e-20, 1e20):
                with self.subTest(experts=experts, value=value):
                    first = top_k_spread(tf.fill([experts, experts], value), tf.range(experts), 1)
                    self.assertAllEqual(first[:, 0], np.arange(experts))

    def test_second_and_third_follow_the_first(self):
        for experts in (8, 64, 256):
            for value in (0.0, 1.0):
                with self.subTest(experts=experts, value=value):
                    chosen = top_k_spread(tf.fill([experts, experts], value), tf.range(experts), 3)
                    expected = (np.arange(experts)[:, None] + np.arange(3)) % experts
                    self.assertAllEqual(chosen, expected)

    def test_does_not_depend_on_the_batch(self):
        logits = np.round(self.normal(20, 6))
        code = self.rng.integers(-1000, 1000, 20).astype("int32")
        together = top_k_spread(logits, code, 6)
        for t in range(20):
            self.assertAllEqual(top_k_spread(logits[t : t + 1], code[t : t + 1], 6)[0], together[t])

    def test_has_no_gradient(self):
        logits = tf.constant(self.normal(2, 3))
        with tf.GradientTape() as tape:
            tape.watch(logits)
            y = tf.cast(top_k_spread(logits, tf.range(2), 2), tf.float32)
        self.assertIsNone(tape.gradient(y, logits))

    def test_xla_gives_the_same_choice(self):
        logits, code = np.round(self.normal(200, 6)), tf.range(200)
        compiled = tf.function(top_k_spread, jit_compile=True)(logits, code, 6)
        self.assertAllEqual(compiled, top_k_spread(logits, code, 6))


class CodeTokensTest(TestCase):
    def test_depends_on_the_token_alone(self):
        x = self.normal(30, 7)
        code = code_tokens(x)
        self.assertEqual((code.dtype, code.shape), (tf.int32, (30,)))
        self.assertAllEqual(code_tokens(x[::-1].copy()), code[::-1])
        for t in (0, 13, 29):
            self.assertAllEqual(code_tokens(x[t : t + 1]), code[t : t + 1])
        self.assertAllEqual(code_tokens(np.tile(x[:1], (5, 1))), np.full(5, code[0]))
        self.assertAllEqual(code_tokens(x[:0]), np.zeros(0))

    def test_rounding_and_scale_do_not_change_it(self):
        x = self.normal(30, 7)
        self.assertAllEqual(code_tokens(x * np.float32(3.3)), code_tokens(x))
        self.assertAllEqual(code_tokens(np.round(x, 4) * (1 + 1e-7)), code_tokens(np.round(x, 4)))

    def test_is_the_same_under_xla_and_whatever_the_seeds(self):
        x = self.normal(50, 16)
        self.assertAllEqual(tf.function(code_tokens, jit_compile=True)(x), code_tokens(x))
        tf.random.set_seed(1)
        first = code_tokens(x)
        np.random.seed(2)
        tf.random.set_seed(3)
        self.assertAllEqual(code_tokens(x), first)

    def test_spreads_over_any_number_of_experts(self):
        x = self.normal(8192, 32)
        code = code_tokens(x).numpy()
        for experts in (2, 3, 8, 10, 64):
            for name, part in (("first level", code), ("second level of 8 groups", code // 8)):
                count = np.bincount(part % experts, minlength=experts)
                with self.subTest(name, experts=experts):
                    self.assertGreater(count.min(), 0.5 * count.mean())
                    self.assertLess(count.max(), 1.5 * count.mean())

    def test_tokens_of_few_features_differ(self):
        for width, codes in ((2, 2), (3, 6), (4, 12), (8, 48)):
            with self.subTest(width=width):
                self.assertGreaterEqual(len(set(code_tokens(self.normal(2000, width)).numpy())), codes)

    def test_tokens_of_one_feature_differ(self):
        self.assertGreater(len(set(code_tokens(self.normal(500, 1)).numpy())), 1)
