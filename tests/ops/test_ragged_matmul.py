from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tests.ops.test_second_derivatives import penalty
from tf_moe.ops import ragged_matmul as module
from tf_moe.ops.ragged_matmul import edges_of, ragged_matmul, ragged_matmul_transposed, ragged_outer

D, H = 5, 3
COUNTS = (2, 0, 4, 1), (0, 0, 0, 0), (7,), (0, 3, 0, 0)


class RaggedMatmulTest(TestCase):
    def test_edges(self):
        self.assertAllEqual(edges_of(tf.constant([2, 0, 3])), [0, 2, 2, 5])

    @parameterized.product(counts=COUNTS, rest=(0, 2), graph=(False, True), many_rows=(3, 512))
    def test_values_and_gradients(self, counts, rest, graph, many_rows):
        self.enter_context(mock.patch.object(module, "MANY_ROWS", many_rows))
        size, groups = sum(counts) + rest, len(counts)
        rows, kernel, d = self.normal(size, D), self.normal(groups, D, H), self.normal(size, H)

        def run(rows, kernel, d, counts):
            with tf.GradientTape() as tape:
                tape.watch([rows, kernel])
                product = ragged_matmul(rows, kernel, edges_of(counts))
            return product, *tape.gradient(product, [rows, kernel], d)

        if graph:
            specs = [tf.TensorSpec(s) for s in ([None, D], [groups, D, H], [None, H])]
            run = tf.function(run, input_signature=[*specs, tf.TensorSpec([groups], tf.int32)])
        found = run(*(tf.constant(x) for x in (rows, kernel, d)), tf.constant(counts))
        expected = np.zeros((size, H)), np.zeros((size, D)), np.zeros((groups, D, H))
        for s, g in enumerate(np.repeat(np.arange(groups), counts)):
            row, matrix, upstream = (x.astype("float64") for x in (rows[s], kernel[g], d[s]))
            expected[0][s], expected[1][s] = row @ matrix, matrix @ upstream
            expected[2][g] += np.outer(row, upstream)
        for ours, want in zip(found, expected, strict=True):
            self.assertAllClose(ours, want, 1e-5, 1e-5)

    @parameterized.product(counts=COUNTS, graph=(False, True))
    def test_derivatives_of_any_order(self, counts, graph):
        """Against a gather of a matrix for each row, whose derivatives are TensorFlow's."""
        rows = tf.constant(self.normal(sum(counts), D), tf.float64)
        weights = [tf.constant(self.normal(len(counts), *shape), tf.float64) for shape in ((D, H), (H, D))]
        edges, group = edges_of(tf.constant(counts)), np.repeat(np.arange(len(counts)), counts)

        def two_layers(matmul):
            return lambda rows, first, second: matmul(tf.tanh(matmul(rows, first)), second)

        ours = two_layers(lambda x, kernel: ragged_matmul(x, kernel, edges))
        plain = two_layers(lambda x, kernel: tf.einsum("sd,sdo->so", x, tf.gather(kernel, group)))
        ask = tf.function(penalty, autograph=False) if graph else penalty
        for found, want in zip(ask(ours, rows, *weights), penalty(plain, rows, *weights), strict=True):
            self.assertAllClose(found, want)

    def test_products_of_no_rows_have_other_columns(self):
        """The fault of `tf.vectorized_map` for which `_rows_each` shapes its products again."""
        products = tf.vectorized_map(lambda rows: tf.matmul(rows, tf.ones([D, H])), tf.ones([2, 0, D]))
        self.assertNotEqual(products.shape[-1], H, "tf.vectorized_map knows it now: _rows_each need not shape them.")

    def test_the_other_products(self):
        counts, edges = (2, 0, 3), edges_of(tf.constant([2, 0, 3]))
        rows, others, kernel = (tf.constant(self.normal(*s), tf.float64) for s in ((6, D), (6, H), (3, D, H)))

        def differs(function, *arguments):
            form = tf.function(lambda *arguments: function(*arguments, edges))
            theoretical, numerical = tf.test.compute_gradient(form, arguments)
            for ours, want in zip(theoretical, numerical, strict=True):
                self.assertAllClose(ours, want, 1e-6, 1e-6)

        differs(ragged_matmul_transposed, others, kernel)
        differs(ragged_outer, rows, others)
        group = np.repeat(np.arange(3), counts)
        transposed, outer = np.zeros((6, D)), np.zeros((3, D, H))
        for s, g in enumerate(group):
            transposed[s] = kernel[g].numpy() @ others[s].numpy()
            outer[g] += np.outer(rows[s], others[s])
        self.assertAllClose(ragged_matmul_transposed(others, kernel, edges), transposed)
        self.assertAllClose(ragged_outer(rows, others, edges), outer)

    def test_vectorized(self):
        """As `jacobian` does by default."""
        counts = (2, 0, 3)
        rows, kernel = tf.constant(self.normal(6, D)), tf.constant(self.normal(3, D, H))

        @tf.function
        def jacobians(pfor):
            with tf.GradientTape(persistent=True) as tape:
                tape.watch([rows, kernel])
                product = tf.tanh(ragged_matmul(rows, kernel, edges_of(tf.constant(counts))))
            return [tape.jacobian(product, x, experimental_use_pfor=pfor) for x in (rows, kernel)]

        for ours, want in zip(jacobians(True), jacobians(False), strict=True):
            self.assertAllClose(ours, want)

    def test_dtypes(self):
        for dtype in (tf.bfloat16, tf.float16):
            rows, kernel = tf.cast(self.normal(3, D), dtype), tf.cast(self.normal(2, D, H), dtype)
            product = ragged_matmul(rows, kernel, edges_of(tf.constant([1, 2])))
            self.assertEqual(product.dtype, dtype)
            expected = tf.einsum("sd,sdo->so", *(tf.cast(x, tf.float32) for x in (rows, tf.gather(kernel, [0, 1, 1]))))
            self.assertAllClose(tf.cast(product, tf.float32), expected, 0.02, 0.02)
