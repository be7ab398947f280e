import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.ops.arrangements import Ragged, Stacks

D, H = 4, 3


class ArrangementsTest(TestCase):
    """The same rows in stacks, and sorted."""

    def setUp(self):
        super().setUp()
        self.rows, self.kernel, self.vectors = self.normal(2, 3, D), self.normal(2, D, H), self.normal(2, H)

    def test_stacks(self):
        stacks = Stacks()
        found = stacks.matmul(self.rows, self.kernel) + stacks.vectors(tf.constant(self.vectors))
        self.assertAllClose(found, self.rows @ self.kernel + self.vectors[:, None])
        asked = []
        Stacks(lambda *arguments: asked.append(arguments)).matmul(self.rows, self.kernel)
        self.assertLen(asked, 1)

    def test_ragged(self):
        rows = np.concatenate([self.rows[0], self.rows[1, :1], self.normal(2, D)])[None]  # two are of no group
        ragged = Ragged(tf.constant([3, 1]), 6)
        found = ragged.matmul(tf.constant(rows), tf.constant(self.kernel)) + ragged.vectors(tf.constant(self.vectors))
        of_stacks = self.rows @ self.kernel + self.vectors[:, None]
        self.assertAllClose(found[0], [*of_stacks[0], of_stacks[1, 0], [0] * H, [0] * H], 1e-5, 1e-5)

    def test_gradient_of_vectors(self):
        vectors, d = tf.constant(self.vectors), self.normal(1, 6, H)
        for form in (lambda f: f, tf.function):

            @form
            def run(vectors):
                with tf.GradientTape() as tape:
                    tape.watch(vectors)
                    spread = Ragged(tf.constant([0, 4]), tf.constant(6)).vectors(vectors)
                return tf.convert_to_tensor(tape.gradient(spread, vectors, d))

            self.assertAllClose(run(vectors), [[0] * H, d[0, :4].sum(0)])
