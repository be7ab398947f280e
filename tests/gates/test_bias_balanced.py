import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import references
from tests.base import TestCase
from tests.gates.helpers import coefficients_for, dense, measure, random_weights, set_weights
from tf_moe.gates import BiasBalanced
from tf_moe.layers import SparseMoE


def logit(p):
    return np.log(np.array(p) / (1 - np.array(p)))


class BiasBalancedTest(TestCase):
    def gate(self, width, experts, k, **kwargs):
        """With random weights, the bias among them."""
        gate = random_weights(BiasBalanced(experts, k, **kwargs), width, self.rng, scale=1.0)
        gate.bias.assign(0.5 * self.normal(experts))
        return gate

    def test_by_hand(self):
        # Row t of the kernel is token t's logits. With the bias of .3 for expert 2:
        #   token  scores        + bias         chosen  weights
        #   0      .6  .2  .4    .6  .2  .7     2, 0    .4 / 1.0, .6 / 1.0
        #   1      .9  .8  .1    .9  .8  .4     0, 1    .9 / 1.7, .8 / 1.7
        #   2      .1  .5  .3    .1  .5  .6     2, 1    .3 / 0.8, .5 / 0.8
        kernel = logit([[0.6, 0.2, 0.4], [0.9, 0.8, 0.1], [0.1, 0.5, 0.3]])
        gate = set_weights(BiasBalanced(3, 2, bias_rate=0.01), 3, kernel=kernel, bias=[0, 0, 0.3])
        routing = gate(np.eye(3, dtype="float32"), training=True)
        self.assertAllEqual(routing.expert_index, [[2, 0], [0, 1], [2, 1]])
        self.assertAllClose(routing.combine_weights, [[0.4, 0.6], [9 / 17, 8 / 17], [3 / 8, 5 / 8]])
        self.assertAllClose(routing.importance, [0.6 + 9 / 17, 8 / 17 + 5 / 8, 0.4 + 3 / 8])
        self.assertAllEqual(routing.load, [2, 2, 2])
        self.assertAllClose(gate.bias, [0, 0, 0.3])  # all have the mean
        # Without the last token the loads are 2, 1, 1, the mean 4 / 3.
        gate(np.eye(3, dtype="float32"), mask=[True, True, False], training=True)
        self.assertAllClose(gate.bias, [-0.01, 0.01, 0.31])

    @parameterized.parameters(1, 5)
    def test_values_and_gradients(self, k):
        """Where weights are no shares, and where all experts are chosen; of a usual k, `test_every_gate.py`."""
        x, experts = self.rng.standard_normal((9, 3)), 5
        gate = self.gate(3, experts, k)
        a, b, _ = coefficients = coefficients_for(self.rng, 9, experts)
        bias = gate.bias.numpy().astype("float64")

        def reference(kernel):
            gates = references.bias_balanced(x, kernel, bias, k)
            return (a * gates).sum() + (b * gates.sum(axis=0)).sum()

        kernel = gate.kernel.numpy().astype("float64")
        routing = gate(x.astype("float32"))
        self.assertAllClose(dense(routing, experts), references.bias_balanced(x, kernel, bias, k), rtol=1e-4, atol=1e-5)
        _, (slope,) = measure(gate, x, experts, coefficients, training=True)
        self.assertAllClose(slope, references.gradients(reference, [kernel])[0], rtol=5e-3, atol=1e-3)

    def test_scores_too_small_for_float32(self):
        """Their weights are still those of their ratios."""
        gate = set_weights(BiasBalanced(3, 2), 1, kernel=[[-200.0, -200.0 + np.log(3), -1000.0]])
        with tf.GradientTape() as tape:
            routing = gate(tf.ones([1, 1]))
            y = tf.reduce_sum(routing.combine_weights * [1.0, 2.0])
        self.assertAllClose(tf.reduce_sum(dense(routing, 3)), 1.0)
        self.assertAllEqual(np.isfinite(tape.gradient(y, gate.kernel)), np.ones((1, 3), bool))

    # --- the bias ---

    def test_a_skewed_gate_is_balanced_by_the_bias_alone(self):
        gate = BiasBalanced(8, 2, bias_rate=0.01)
        kernel = self.normal(16, 8) / 4
        kernel[0] = [3, 2, 1, 0, 0, -1, -2, -3]
        set_weights(gate, 16, kernel=kernel)

        @tf.function
        def step(x):
            return gate(x, training=True).load

        def batch():
            x = self.normal(512, 16)
            x[:, 0] = 1.0
            return tf.constant(x)

        loads = [step(batch()) for _ in range(300)]
        self.assertAllEqual(gate.kernel, kernel)
        self.assertGreater(np.max(loads[0]), 3 * 128)
        last = np.mean(loads[-100:], axis=0)  # usually 2 off, in 60 runs 5 at most
        self.assertAllClose(last, np.full(8, 128), atol=13)
        self.assertLess(np.max(gate(batch()).load), 2 * 128)  # at evaluation too

    def test_moves_in_training_alone(self):
        gate, x = self.gate(3, 5, 2), self.normal(9, 3)
        before = gate.bias.numpy()
        gate(x)
        gate(x, mask=np.zeros(9, bool), training=True)  # no load, all the same
        gate.trainable = False
        gate(x, training=True)
        self.assertAllEqual(gate.bias, before)
        gate.trainable = True
        load = gate(x, training=True).load.numpy()
        self.assertAllClose(gate.bias, before + 0.001 * np.sign(load.mean() - load), rtol=1e-6)
        self.assertEqual([w.name for w in gate.trainable_weights], ["kernel"])

    def test_untrained_tokens_are_spread(self):
        """Also where all scores are equal."""
        for initializer in ("glorot_uniform", "zeros"):
            for k in (1, 2):
                load = BiasBalanced(4, k, initializer)(self.normal(2000, 16)).load
                self.assertAllInRange(load, 0.4 * k * 500, 1.7 * k * 500)

    # --- in a layer ---

    @parameterized.named_parameters(
        ("plain", {}, False),
        ("recomputed_under_xla", {"recompute": True, "capacity_factor": 1.0}, True),
    )
    def test_fit_moves_it_once_a_step(self, arguments, jit_compile):
        layer = SparseMoE(5, 3, k=2, gate="bias_balanced", name="moe", **arguments)
        model = keras.Sequential([keras.Input((4,)), layer])
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
        x = self.normal(12, 4)
        kernel, expected = layer.gate.kernel.numpy(), np.zeros(5)
        for _ in range(2):
            load = layer.route(x).load.numpy()
            expected += 0.001 * np.sign(load.mean() - load)
            model.fit(x, x, batch_size=12, verbose=0)
            self.assertAllClose(layer.gate.bias, expected, rtol=1e-6)
        self.assertNotAllClose(layer.gate.kernel, kernel)  # which the optimizer moved
