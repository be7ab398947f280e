from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tests.ops.test_second_derivatives import penalty
from tf_moe.layers import SparseMoE
from tf_moe.ops import ragged_matmul, stacked_matmul
from tf_moe.ops.stacked_matmul import fastest_matmul, is_slow

D, H = 5, 3


class StackedMatmulTest(TestCase):
    def setUp(self):
        super().setUp()
        self.enter_context(mock.patch.object(stacked_matmul, "has_onednn", return_value=False))
        self.enter_context(mock.patch.object(stacked_matmul, "SMALLEST_MATRIX", D * H))

    @parameterized.product(
        training=(False, True), graph=(False, True), groups=(4, 1), size=(0, 1, 6), many_rows=(3, 512)
    )
    def test_values_and_gradients(self, training, graph, groups, size, many_rows):
        self.enter_context(mock.patch.object(ragged_matmul, "MANY_ROWS", many_rows))
        rows, kernel, d = self.normal(groups, size, D), self.normal(groups, D, H), self.normal(groups, size, H)

        def run(rows, kernel, d):
            with tf.GradientTape() as tape:
                tape.watch([rows, kernel])
                product = fastest_matmul(training)(rows, kernel)
            return product, *tape.gradient(product, [rows, kernel], d)

        if graph:
            specs = [tf.TensorSpec(shape) for shape in ([groups, None, D], [groups, D, H], [groups, None, H])]
            run = tf.function(run, input_signature=specs)
        found = run(*(tf.constant(x) for x in (rows, kernel, d)))
        rows, kernel, d = (x.astype("float64") for x in (rows, kernel, d))
        expected = rows @ kernel, d @ kernel.transpose(0, 2, 1), rows.transpose(0, 2, 1) @ d
        for ours, want in zip(found, expected, strict=True):
            self.assertAllClose(ours, want, 1e-5, 1e-5)

    @parameterized.product(training=(False, True), graph=(False, True))
    def test_second_derivatives(self, training, graph):
        rows = tf.constant(self.normal(4, 2, D), tf.float64)
        weights = [tf.constant(self.normal(4, *shape), tf.float64) for shape in ((D, H), (H, D))]

        def two_layers(matmul):
            return lambda rows, first, second: matmul(tf.tanh(matmul(rows, first)), second)

        ask = tf.function(penalty, autograph=False) if graph else penalty
        expected = penalty(two_layers(tf.matmul), rows, *weights)
        for ours, want in zip(ask(two_layers(fastest_matmul(training)), rows, *weights), expected, strict=True):
            self.assertAllClose(ours, want)

    def test_only_training_loops(self):
        @tf.function
        def product(training):
            return fastest_matmul(training)(tf.ones([4, 2, D]), tf.ones([4, D, H]))

        def operations(training):
            return {op.type for op in product.get_concrete_function(training).graph.get_operations()}

        self.assertIn("BatchMatMulV2", operations(False))
        self.assertNotIn("StatelessWhile", operations(False))
        self.assertIn("StatelessWhile", operations(True))

    def test_where_it_is_slow(self):
        shape, asked = (4, D, H), []
        self.assertTrue(is_slow(shape))
        self.assertFalse(is_slow((4, D, H - 1)))  # matrices too small for a loop

        @tf.function(jit_compile=True)
        def compiled(x):
            asked.append(is_slow(shape))
            return x

        compiled(tf.ones([]))
        with mock.patch.object(stacked_matmul, "has_onednn", return_value=True):
            asked.append(is_slow(shape))
        with mock.patch.object(tf.config, "list_physical_devices", return_value=["GPU"]):
            asked.append(is_slow(shape))
        self.assertEqual(asked, [False] * 3)
        with tf.Graph().as_default():
            small = fastest_matmul(training=True)(tf.ones([4, 2, D]), tf.ones([4, D, H - 1]))
            self.assertEqual(small.op.type, "BatchMatMulV2")

    @parameterized.parameters(
        ({},), ({"capacity_factor": 1.0},), ({"recompute": True, "use_bias": True},), ({"expert_dropout": 0.5},)
    )
    def test_a_layer_is_the_same(self, arguments):
        layer = SparseMoE(4, H, k=2, seed=3, **arguments)
        layer.build((None, D))
        for weight in layer.trainable_weights:
            weight.assign(self.normal(*weight.shape))
        tokens = tf.constant(
            np.concatenate([self.normal(9, D), np.tile(self.normal(1, D), (20, 1))])
        )  # one group is hot
        weights = [w.value for w in layer.trainable_weights]
        calls = []

        def step(tokens):
            for seed in layer.non_trainable_variables:
                seed.assign(tf.ones_like(seed))
            with tf.GradientTape() as tape:
                tape.watch(tokens)
                output = layer(tokens, training=True)
            return output, *tape.gradient(output, [tokens, *weights], unconnected_gradients="zero")

        def counted(*arguments):
            calls.append(arguments)
            return each(*arguments)

        each = ragged_matmul._rows_each
        with mock.patch.object(ragged_matmul, "_rows_each", counted):
            found = tf.function(step)(tokens)
        self.assertNotEmpty(calls)
        with mock.patch.object(stacked_matmul, "has_onednn", return_value=True):
            expected = tf.function(step)(tokens)
        for ours, want in zip(found, expected, strict=True):
            self.assertAllClose(ours, want, 1e-5, 1e-5)
