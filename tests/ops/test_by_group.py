"""Products with the matrices of groups against one product after another."""

import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.mesh.helpers import Program, strategy_on
from tf_moe.mesh.shards import computed_where
from tf_moe.ops.by_group import matmul_by_group

T, K, G, D, OUT = 12, 2, 5, 3, 4


class MatmulByGroupTest(TestCase):
    def setUp(self):
        super().setUp()
        self.tokens, self.kernel = self.normal(T, D), self.normal(G, D, OUT)
        self.group = self.rng.integers(0, G + 1, (T, K)).astype("int32")  # G is no group
        self.group[self.group == 2] = 3  # one that nobody asks for

    def expected(self):
        products = np.zeros((T, K, OUT))
        for t, k in np.ndindex(T, K):
            if self.group[t, k] < G:
                products[t, k] = self.tokens[t].astype("float64") @ self.kernel[self.group[t, k]]
        return products

    def test_values_and_gradients(self):
        weights = self.normal(T, K, OUT, dtype="float64")
        d_tokens, d_kernel = np.zeros((T, D)), np.zeros((G, D, OUT))
        for t, k in np.ndindex(T, K):
            if (g := self.group[t, k]) < G:
                d_tokens[t] += self.kernel[g] @ weights[t, k]
                d_kernel[g] += np.outer(self.tokens[t], weights[t, k])

        def run(tokens, kernel, group):
            with tf.GradientTape() as tape:
                tape.watch([tokens, kernel])
                products = matmul_by_group(tokens, group, kernel)
                loss = tf.reduce_sum(products * tf.cast(weights, tf.float32))
            return products, *tape.gradient(loss, [tokens, kernel])

        arguments = [tf.constant(x) for x in (self.tokens, self.kernel, self.group)]
        for jit_compile in (False, True):
            with self.subTest(jit_compile=jit_compile):
                found = tf.function(run, jit_compile=jit_compile)(*arguments)
                for ours, want in zip(found, (self.expected(), d_tokens, d_kernel), strict=True):
                    self.assertAllClose(ours, want, rtol=1e-5, atol=1e-5)

    def test_on_a_mesh(self):
        strategy = strategy_on(4, 2)
        with strategy.scope():
            kernel = keras.Variable(self.kernel)

        def run(tokens, group):
            with computed_where(kernel):
                return matmul_by_group(tokens, group, tf.convert_to_tensor(kernel))

        program = Program(strategy, run)
        self.assertAllClose(program(self.tokens, self.group), self.expected(), rtol=1e-5, atol=1e-5)

    def test_no_token(self):
        found = matmul_by_group(tf.zeros([0, D]), tf.zeros([0, K], tf.int32), tf.constant(self.kernel))
        self.assertEqual(found.shape, (0, K, OUT))
