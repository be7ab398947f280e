"""Bytes read from compiled programs, against hand-counted ones and against the cost model."""

import math

import keras
import tensorflow as tf
from absl.testing import parameterized
from tensorflow.experimental import dtensor

from tests.base import TestCase
from tests.mesh.helpers import strategy_on
from tf_moe.analysis.scaling import step_cost
from tf_moe.distribute.traffic import measure_traffic
from tf_moe.layers import SparseMoE

EXPERTS, WIDTH, HIDDEN, BATCH, STEPS = 16, 8, 12, 8, 32


def measured(shards, replicas=1, policy=None, **arguments):
    """Traffic of a first training step of a model that is just the layer."""
    with strategy_on(shards * replicas, replicas).scope():
        inputs = keras.Input((STEPS, WIDTH))
        model = keras.Model(inputs, SparseMoE(expert_hidden=HIDDEN, dtype=policy, **arguments)(inputs))
        model.compile("adam", "mse")
    x = tf.random.normal([BATCH, STEPS, WIDTH]).numpy()
    return measure_traffic(lambda: model.train_on_batch(x, x))


def predicted(shards, replicas=1, num_experts=EXPERTS, k=4, **arguments):
    return step_cost(num_experts, WIDTH, HIDDEN, k, BATCH * STEPS, shards, replicas, **arguments)


class TrafficTest(TestCase):
    @parameterized.named_parameters(
        ("two", 2, EXPERTS, 4),
        ("four", 4, EXPERTS, 4),
        ("four_hierarchical", 4, (4, 4), (2, 2)),
    )
    def test_a_step_sends_what_the_model_says(self, shards, num_experts, k):
        traffic = measured(shards, num_experts=num_experts, k=k)
        cost = predicted(shards, num_experts=num_experts, k=k)
        self.assertEqual(traffic.bytes_sent("all_to_all"), cost.exchange_bytes)
        self.assertEqual(traffic.bytes_sent("all_to_all", in_loop=True), cost.turn_exchange_bytes)
        # Beside the gradients: importance and load, each written in two digits at the most, and single numbers.
        statistics = 4 * 2 * (math.isqrt(EXPERTS - 1) + 1) ** 2 + 4 * EXPERTS + 8 * 16
        more = traffic.bytes_sent("all_reduce") - cost.reduce_bytes
        self.assertBetween(more, 0, 2 * (shards - 1) / shards * statistics)
        self.assertEqual(traffic.bytes_sent("all_gather"), 0)

    def test_replicas_send_the_gradients_of_experts_too(self):
        traffic, cost = measured(2, 2, num_experts=EXPERTS, k=4), predicted(2, 2)
        self.assertEqual(traffic.bytes_sent("all_to_all"), cost.exchange_bytes)
        kernels = [c for c in traffic.collectives if c.shape == (EXPERTS // 2, WIDTH, HIDDEN) and not c.in_loop]
        self.assertEqual([(c.kind, c.devices) for c in kernels], [("all_reduce", 2)])

    def test_half_precision_sends_half(self):
        traffic = measured(2, policy="mixed_bfloat16", num_experts=EXPERTS, k=4)
        self.assertEqual(traffic.bytes_sent("all_to_all"), predicted(2, number_bytes=2).exchange_bytes)

    def test_kinds(self):
        """Every kind of collective, by hand: a (8, 6) float32 tensor on 2 x 2 devices."""
        mesh = dtensor.create_mesh([("a", 2), ("b", 2)], devices=[f"CPU:{n}" for n in range(4)])
        whole, rows, columns = (
            dtensor.Layout(specs, mesh)
            for specs in ([dtensor.UNSHARDED] * 2, ["a", dtensor.UNSHARDED], [dtensor.UNSHARDED, "a"])
        )
        x = dtensor.relayout(dtensor.copy_to_mesh(tf.ones([8, 6]), whole), rows)

        def sent(function, kind):
            program = tf.function(function, autograph=False)
            with dtensor.default_mesh(mesh):
                (collective,) = measure_traffic(lambda: program(x)).collectives
            self.assertEqual((collective.kind, collective.devices, collective.in_loop), (kind, 2, False))
            return collective.bytes_sent

        # Half of the 4 x 6 numbers that a device has go to the other one.
        self.assertEqual(sent(lambda x: dtensor.relayout(x, columns), "all_to_all"), 4 * 6 / 2 * 4)
        # A ring of two sums 6 numbers: each sends half of them twice.
        self.assertEqual(sent(lambda x: tf.reduce_sum(x, 0), "all_reduce"), 6 * 4)
        # On CPUs a sum of 8 x 6 numbers.
        self.assertEqual(sent(lambda x: dtensor.relayout(x, whole), "all_gather"), 8 * 6 * 4)

    def test_nothing_compiled(self):
        with self.assertRaisesRegex(ValueError, "no new program"):
            measure_traffic(lambda: None)
