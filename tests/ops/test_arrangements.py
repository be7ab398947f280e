import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.ops.arrangements import Ragged, Stacks

D, H = 4, 3


class ArrangementsTest(TestCase):
    """The same rows in stacks, and sorted with two of no group after them."""

    def setUp(self):
        super().setUp()
        self.rows, self.kernel, self.vectors = self.normal(2, 3, D), self.normal(2, D, H), self.normal(2, H)
        self.flat = np.concatenate([self.rows[0], self.rows[1, :1], self.normal(2, D)])[None]
        self.ragged = Ragged(tf.constant([3, 1]))

    def test_stacks(self):
        stacks = Stacks()
        products = self.rows @ self.kernel
        self.assertAllClose(stacks.matmul(self.rows, self.kernel), products, 1e-5, 1e-5)
        self.assertAllClose(stacks.add(products, self.vectors), products + self.vectors[:, None])
        self.assertAllClose(stacks.scale(products, self.vectors), products * self.vectors[:, None])
        asked = []
        Stacks(lambda *arguments: asked.append(arguments)).matmul(self.rows, self.kernel)
        self.assertLen(asked, 1)

    def test_ragged(self):
        found = self.ragged.matmul(tf.constant(self.flat), tf.constant(self.kernel))
        products = np.concatenate([self.rows[0] @ self.kernel[0], self.rows[1, :1] @ self.kernel[1], np.zeros((2, H))])
        self.assertAllClose(found[0], products, 1e-5, 1e-5)
        spread = np.concatenate([self.vectors[[0, 0, 0, 1]], np.zeros((2, H))])
        self.assertAllClose(self.ragged.add(found, tf.constant(self.vectors))[0], products + spread, 1e-5, 1e-5)
        self.assertAllClose(self.ragged.scale(found, tf.constant(self.vectors))[0], products * spread, 1e-5, 1e-5)

    @parameterized.parameters(False, True)
    def test_gradients(self, graph):
        rows, vectors, d = tf.constant(self.normal(1, 6, H)), tf.constant(self.vectors), self.normal(1, 6, H)

        def run(rows, vectors):
            ragged = Ragged(tf.constant([0, 4]))
            with tf.GradientTape(persistent=True) as tape:
                tape.watch([rows, vectors])
                total, scaled = ragged.add(rows, vectors), ragged.scale(rows, vectors)
            return *tape.gradient(total, [rows, vectors], d), tape.gradient(scaled, rows, d)

        if graph:
            run = tf.function(run, input_signature=[tf.TensorSpec([1, None, H]), tf.TensorSpec([2, H])])
        d_rows, d_vectors, d_scaled = run(rows, vectors)
        self.assertAllClose(d_rows, d)
        self.assertAllClose(d_vectors, [[0] * H, d[0, :4].sum(0)])
        self.assertAllClose(d_scaled[0], d[0] * np.concatenate([[self.vectors[1]] * 4, np.zeros((2, H))]))

    @parameterized.parameters(tf.bfloat16, tf.float16)
    def test_gradients_of_many_rows_in_half_precision(self, dtype):
        """In bfloat16 a sum of ones does not come past 256."""
        vectors = tf.zeros([1, H], dtype)
        with tf.GradientTape() as tape:
            tape.watch(vectors)
            total = Ragged(tf.constant([1000])).add(tf.zeros([1, 1000, H], dtype), vectors)
        self.assertAllClose(tf.cast(tape.gradient(total, vectors), tf.float32), [[1000] * H], rtol=0.01)
