"""A mesh computes what one device computes: outputs, losses, gradients, and where they lead."""

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tests.mesh.helpers import MESHES, Program, strategy_on
from tf_moe.gates import BiasBalanced, Hash
from tf_moe.layers import SparseMoE

D = 6
GATES = {
    "noisy_top_k": {"num_experts": 8, "k": 3},
    "one_of_many": {"num_experts": 16, "k": 1},
    "hierarchical": {"num_experts": (4, 4), "k": (2, 2)},
    "strictly_balanced": {"num_experts": 8, "k": 2, "gate": "strictly_balanced"},
}
# What takes ids, and from 0 to below which number.
WITH_IDS = {
    "bias_balanced": (3, {"num_experts": 8, "k": 2}, BiasBalanced(8, 2, num_gates=3)),
    "hash": (50, {"num_experts": 8, "k": 2}, Hash(8, 2)),
}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class ExactnessTest(TestCase):
    def pair(self, strategy, **arguments):
        """The same layer on one device and on a mesh, its gate's and experts' weights random."""
        arguments = {"expert_hidden": 7, "seed": 5, "use_bias": True, **arguments}
        one = SparseMoE(**arguments)
        one.build((None, D))
        with strategy.scope():
            many = SparseMoE(**arguments)
            many.build((None, D))
        weights = [0.5 * self.normal(*w.shape) for w in one.get_weights()]
        one.set_weights(weights), many.set_weights(weights)
        return one, many

    @staticmethod
    def step_of(layer, evaluate=False):
        def step(x, mask, *ids):
            options = {"gate_id": ids[0]} if ids else {}
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, mask=mask, training=True, **options)
                balance = sum(layer.losses, tf.constant(0.0))  # a gate may have none
                loss = tf.reduce_mean(tf.sin(tf.where(tf.math.is_nan(y), 0.0, y))) + balance
            sources = [x, *(v.value for v in layer.trainable_variables)]
            gradients = tape.gradient(loss, sources, unconnected_gradients="zero")
            return y, balance, gradients, [layer(x, mask=mask, **options)] if evaluate else []

        return step

    def check(self, mesh, shapes=((16, 2),), ids=None, evaluate=False, **arguments):
        """A training step on batches of these shapes; with ids, one a sequence, below a number."""
        strategy = strategy_on(*mesh)
        one, many = self.pair(strategy, **arguments)
        program, expected_step = Program(strategy, self.step_of(many, evaluate)), self.step_of(one, evaluate)
        names = ["y", "balance", "x", *(v.path for v in one.trainable_variables), *["prediction"] * evaluate]
        for shape in shapes:
            x, mask = self.normal(*shape, D), self.rng.random(shape) < 0.7
            x[0, 0, 0], mask[0, 0] = np.nan, True  # a token that is to spoil nothing
            mask[-1, -1] = True  # or there may be none but that one
            batch = [x, mask] if ids is None else [x, mask, self.rng.integers(0, ids, shape[0])]
            expected = tf.nest.flatten(expected_step(*map(tf.constant, batch)))
            for name, ours, want in zip(names, tf.nest.flatten(program(*batch)), expected, strict=True):
                self.assertAllClose(ours, want, msg=f"{name} {shape}", **CLOSE)
            self.assertGreater(np.abs(expected[len(names) - 1 - evaluate]).max(), 0)  # there is something to compare
        for name, ours, want in zip([v.path for v in one.weights], many.get_weights(), one.get_weights(), strict=True):
            self.assertAllClose(ours, want, rtol=1e-6, msg=name)  # a gate may change its own in a step
        many_metrics, one_metrics = many.balance_metrics, one.balance_metrics
        for name, metric in one_metrics.items():
            self.assertAllClose(many_metrics[name].result(), metric.result(), msg=name, **CLOSE)

    @parameterized.named_parameters(GATES.items())
    def test_two_devices(self, arguments):
        """Training and evaluation, on a batch that divides evenly and one that does not."""
        self.check((2, 1), shapes=((16, 2), (5, 2)), evaluate=True, **arguments)

    @parameterized.named_parameters((name, *values) for name, values in WITH_IDS.items())
    def test_gates_with_ids(self, ids, arguments, gate):
        # Its config: an object would be the gate of both layers.
        gate = keras.saving.serialize_keras_object(gate)
        self.check((2, 1), ids=ids, evaluate=True, gate=gate, **arguments)

    @parameterized.named_parameters(
        ("1", MESHES["1"], "noisy_top_k"),
        ("4", MESHES["4"], "strictly_balanced"),
        ("8", (8, 1), "noisy_top_k"),
        ("2x2", MESHES["2x2"], "hierarchical"),
    )
    def test_mesh(self, mesh, gate):
        self.check(mesh, **GATES[gate])

    def test_uneven_batch_on_replicas(self):
        """Which divides evenly once it is tokens, and then over all but the axis of the batch."""
        self.check(MESHES["4x2"], shapes=((5, 8), (4, 1)), **GATES["noisy_top_k"])

    def test_recompute(self):
        self.check((2, 1), recompute=True, **GATES["noisy_top_k"])

    def test_shared_expert_and_dropped_units(self):
        """What is dropped does not depend on where an expert is. (The shared expert's own dropout does.)"""
        shared = {"shared_expert_hidden": 5, **GATES["noisy_top_k"]}
        self.check(MESHES["2x2"], **shared)
        self.check((2, 1), expert_dropout=0.5, **GATES["noisy_top_k"])

    def test_hot_experts(self):
        """More than the block holds, hence rounds: all tokens are one."""
        strategy = strategy_on(2)
        one, many = self.pair(strategy, **GATES["noisy_top_k"])
        for layer in (one, many):
            layer.gate.noise_kernel.assign(np.full((D, 8), -20.0))  # no noise to tell tokens apart
        x, mask = np.tile(np.abs(self.normal(1, 1, D)), (16, 6, 1)), np.ones((16, 6), bool)
        expected = tf.nest.flatten(self.step_of(one)(tf.constant(x), tf.constant(mask)))
        for ours, want in zip(tf.nest.flatten(Program(strategy, self.step_of(many))(x, mask)), expected, strict=True):
            self.assertAllClose(ours, want, **CLOSE)
        self.assertAllClose(many.balance_metrics["max_over_mean_load"].result(), 8 / 3, rtol=0.01)

    def test_a_capacity_is_for_each_device(self):
        """Each device drops as a layer of its own would that has just its tokens."""
        strategy = strategy_on(2)
        arguments = {"capacity_factor": 0.7, "drop_by": "weight", **GATES["noisy_top_k"]}
        one, many = self.pair(strategy, **arguments)
        x = self.normal(32, D)
        y = Program(strategy, lambda x: many(x))(x)
        self.assertAllClose(y, tf.concat([one(x[:16]), one(x[16:])], 0), **CLOSE)
        dropped = many.balance_metrics["dropped_fraction"].result()
        self.assertAllClose(dropped, one.balance_metrics["dropped_fraction"].result())
        self.assertGreater(dropped, 0.1)

    def test_ten_steps_stay_together(self):
        strategy = strategy_on(4, 2)
        one, many = self.pair(strategy, **GATES["noisy_top_k"])
        with strategy.scope():
            many_optimizer = keras.optimizers.Adam(0.02, epsilon=1e-4)
            many_optimizer.build(many.trainable_variables)
        one_optimizer = keras.optimizers.Adam(0.02, epsilon=1e-4)

        def train(layer, optimizer):
            def step(x):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean((layer(x, training=True) - tf.sin(x)) ** 2) + sum(layer.losses)
                gradients = tape.gradient(loss, layer.trainable_variables)
                optimizer.apply(gradients, layer.trainable_variables)
                return loss

            return step

        before = one.get_weights()
        program, expected_step = Program(strategy, train(many, many_optimizer)), train(one, one_optimizer)
        for _ in range(10):
            x = self.normal(32, D)
            self.assertAllClose(program(x), expected_step(tf.constant(x)), rtol=1e-4)
        for start, ours, want in zip(before, many.get_weights(), one.get_weights(), strict=True):
            self.assertAllClose(ours, want, rtol=1e-3, atol=1e-4)
            self.assertNotAllClose(start, want, atol=0.01)
