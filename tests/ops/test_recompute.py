import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from tests.base import TestCase
from tf_moe.ops.recompute import recomputed


def two_layers(x, first, second):
    return tf.matmul(tf.tanh(tf.matmul(x, first)), second)


def loss_and_gradients(function):
    def run(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            # Not a plain sum: its gradient is a constant, which the graph optimizer would not have to wait for.
            loss = tf.reduce_sum(function(*inputs) ** 3)
        return loss, *tape.gradient(loss, inputs)

    return run


class RecomputeTest(TestCase):
    def setUp(self):
        super().setUp()
        self.inputs = [tf.constant(self.normal(*shape)) for shape in ((5, 3), (3, 4), (4, 2))]

    def test_same_values_and_gradients(self):
        x, first, second = (t.numpy().astype("float64") for t in self.inputs)
        hidden = np.tanh(x @ first)
        output = hidden @ second
        d_output = 3 * output**2
        d_hidden = d_output @ second.T * (1 - hidden**2)
        expected = (output**3).sum(), d_hidden @ first.T, x.T @ d_hidden, hidden.T @ d_output
        run = loss_and_gradients(recomputed(two_layers))
        for name, form in {
            "eager": run,
            "graph": tf.function(run),
            "xla": tf.function(run, jit_compile=True),
        }.items():
            with self.subTest(name):
                for value, want in zip(form(*self.inputs), expected, strict=True):
                    self.assertAllClose(value, want, rtol=1e-3, atol=1e-3)

    def test_an_argument_without_influence_gets_zeros(self):
        run = loss_and_gradients(recomputed(lambda x, w, unused: tf.matmul(x, w)))
        self.assertAllEqual(run(*self.inputs)[-1], np.zeros((4, 2)))

    def test_computed_twice_eagerly(self):
        calls = []

        def counted(*inputs):
            calls.append(1)
            return two_layers(*inputs)

        loss_and_gradients(recomputed(counted))(*self.inputs)
        self.assertLen(calls, 2)

    def test_the_graph_optimizer_does_not_merge_the_two(self):
        # Without the tie to the incoming gradient the optimizer finds the second Tanh equal to the first.
        self.assertEqual(self.tanhs_that_run(two_layers), 1)
        self.assertEqual(self.tanhs_that_run(recomputed(two_layers)), 2)

    def tanhs_that_run(self, function):
        step = tf.function(loss_and_gradients(function))
        context.enable_run_metadata()
        try:
            step(*self.inputs)
            graphs = context.context().export_run_metadata().function_graphs
        finally:
            context.disable_run_metadata()
        return sum(node.op == "Tanh" for graph in graphs for node in graph.post_optimization_graph.node)

    def test_xla_is_given_a_barrier(self):
        # What XLA makes of it depends on the device: on the CPU of TensorFlow 2.21 it merges the two all the same.
        def program(function):
            step = tf.function(loss_and_gradients(function), jit_compile=True)
            return step.experimental_get_compiler_ir(*self.inputs)(stage="hlo")

        plain, twice = program(two_layers), program(recomputed(two_layers))
        self.assertEqual((plain.count(" tanh("), plain.count(" opt-barrier(")), (1, 0))
        self.assertEqual((twice.count(" tanh("), twice.count(" opt-barrier(")), (2, 1))

    def test_inside_a_loop(self):
        def looped(function):
            def run(x, w, _):
                return tf.while_loop(lambda n, x: n < 3, lambda n, x: (n + 1, function(x, w)), (0, x))[1]

            return run

        inputs = [self.inputs[0], tf.constant(self.normal(3, 3)), self.inputs[2]]

        def layer(x, w):
            return tf.tanh(tf.matmul(x, w))

        plain = tf.function(loss_and_gradients(looped(layer)))(*inputs)[:3]
        again = tf.function(loss_and_gradients(looped(recomputed(layer))))(*inputs)[:3]
        for value, want in zip(again, plain, strict=True):
            self.assertAllClose(value, want, rtol=1e-4, atol=1e-5)
