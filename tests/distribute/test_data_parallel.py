"""The layers under TensorFlow's own data-parallel strategies."""

import subprocess
import sys
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

import tf_moe
from tests.base import TestCase
from tests.gates.helpers import NoNoise
from tests.processes import environment
from tf_moe.distribute.launch import process_environment, reserved_ports

# A loop of its own: Keras 3.15's fit fails under this strategy with any model, a single Dense layer included.
MULTI_WORKER = """
import keras, numpy as np, tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
import tf_moe
keras.utils.set_random_seed(int(strategy.cluster_resolver.task_id))  # the strategy has to make the weights agree
with strategy.scope():
    layer = tf_moe.layers.SparseMoE(4, 8, k=2, seed=1)
    layer.build((None, 6))
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(layer.trainable_variables)
data = np.random.RandomState(0).randn(16, 6).astype("float32")
dataset = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices(data).batch(8))

@tf.function
def step(x):
    def compute(x):
        with tf.GradientTape() as tape:
            y = layer(x, training=True)
            loss = (tf.reduce_mean((y - x) ** 2) + tf.add_n(layer.losses)) / strategy.num_replicas_in_sync
        optimizer.apply(tape.gradient(loss, layer.trainable_variables), layer.trainable_variables)
        return loss
    return strategy.reduce("SUM", strategy.run(compute, (x,)), axis=None)

losses = [float(step(x)) for _ in range(3) for x in dataset]
print("RESULT", losses, float(np.abs(layer.get_weights()[-1]).sum()))
"""


def build(**arguments):
    """A model that is nothing but the layer, with fixed weights."""
    gate = tf_moe.gates.NoisyTopK(4, 2, kernel_initializer=keras.initializers.RandomNormal(seed=3), seed=1)
    layer = tf_moe.layers.SparseMoE(
        4, 8, k=2, gate=gate, kernel_initializer=keras.initializers.RandomNormal(seed=2), name="moe", **arguments
    )
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


class MirroredTest(TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # One for all tests: a second one in a process numbers its exchanges from the start again, and TensorFlow takes
        # them for the first one's, which had other shapes.
        cls.strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

    def test_noise_differs_between_replicas(self):
        with self.strategy.scope():
            gate = tf_moe.gates.NoisyTopK(4, 2, seed=1)
            gate.build((None, 6))
        draw = tf.function(lambda: self.strategy.run(lambda: gate.noise([3, 4])))
        first, second = self.strategy.experimental_local_results(draw())
        self.assertNotAllClose(first, second)
        again, _ = self.strategy.experimental_local_results(draw())
        self.assertNotAllClose(first, again)

    def test_fit_is_the_mean_over_replicas(self):
        """With a balance loss alone, a step on two replicas is the mean of the steps on each half of the batch."""
        x = self.normal(8, 6)
        options = {"importance_weight": 1.0, "load_weight": 0.0}
        with self.strategy.scope():
            model = build(**options)
        self.enterContext(mock.patch.object(tf_moe.gates.Gate, "new_noise", return_value=NoNoise()))
        before = model.get_layer("moe").gate.kernel.numpy()
        model.fit(x, np.zeros_like(x), batch_size=8, verbose=0, sample_weight=np.zeros(8), shuffle=False)
        moved = model.get_layer("moe").gate.kernel.numpy() - before
        expected = []
        for half in (x[:4], x[4:]):
            plain = build(**options)
            plain.run_eagerly = True  # to be traced takes longer than the step
            start = plain.get_layer("moe").gate.kernel.numpy()
            self.assertAllClose(start, before)
            plain.fit(half, np.zeros_like(half), batch_size=4, verbose=0, sample_weight=np.zeros(4), shuffle=False)
            expected.append(plain.get_layer("moe").gate.kernel.numpy() - start)
        self.assertGreater(np.abs(moved).max(), 1e-4)
        self.assertAllClose(moved, np.mean(expected, axis=0), rtol=1e-4, atol=1e-6)

    def test_a_balancing_bias_follows_the_load_of_all_replicas(self):
        with self.strategy.scope():
            layer = tf_moe.layers.SparseMoE(4, 8, k=2, gate="bias_balanced")
            layer.build((None, 6))
        expected = tf_moe.gates.BiasBalanced(4, 2)
        expected.build((None, 6))
        expected.set_weights(layer.gate.get_weights())
        x = tf.constant(self.normal(16, 6))
        halves = self.strategy.experimental_distribute_values_from_function(
            lambda replica: x[8 * replica.replica_id_in_sync_group :][:8]
        )
        step = tf.function(lambda: self.strategy.run(lambda x: layer(x, training=True), [halves]))
        for _ in range(3):
            step()
            expected(x, training=True)
        self.assertGreater(np.abs(expected.bias).max(), 0)
        copies = self.strategy.experimental_local_results(layer.gate.bias.value)
        self.assertLen(copies, 2)
        for copy in copies:
            self.assertAllClose(copy, expected.bias, rtol=1e-6)

    def test_fit_evaluate_predict(self):
        with self.strategy.scope():
            model = build()
        x = self.normal(10, 6)
        monitor = tf_moe.analysis.ExpertMonitor([x])
        history = model.fit(x, x, batch_size=4, epochs=2, verbose=0, callbacks=[monitor]).history
        self.assertEqual(monitor.steps, [3, 6])
        self.assertLess(history["loss"][1], history["loss"][0] * 1.5)
        self.assertEqual(history["moe/dropped_fraction"], [0.0, 0.0])
        plain = build()
        plain.run_eagerly = True
        plain.set_weights(model.get_weights())
        self.assertAllClose(model.predict(x, batch_size=4, verbose=0), plain.predict(x, verbose=0), atol=1e-6)
        # The loss alone: the metrics of balance are means over the replicas, of fewer tokens each.
        losses = [m.evaluate(x, x, verbose=0, return_dict=True)["loss"] for m in (model, plain)]
        self.assertAllClose(losses[0], losses[1], rtol=1e-4)


class MultiWorkerMirroredTest(TestCase):
    def test_two_processes(self):
        command, processes, pipes = [sys.executable, "-c", MULTI_WORKER], [], dict.fromkeys(("stdout", "stderr"), -1)
        with reserved_ports(2) as ports:  # until they are done: nobody else gets them
            addresses = [f"localhost:{port}" for port in ports]
            for index in range(2):
                variables = environment(**process_environment(index, addresses))
                processes.append(subprocess.Popen(command, env=variables, text=True, **pipes))
            outputs = [process.communicate(timeout=300) for process in processes]
        results = []
        for process, (stdout, stderr) in zip(processes, outputs, strict=True):
            self.assertEqual(process.returncode, 0, stderr[-3000:])
            results.append(next(line for line in stdout.splitlines() if line.startswith("RESULT")))
        self.assertEqual(results[0], results[1])
        self.assertNotIn("nan", results[0])
