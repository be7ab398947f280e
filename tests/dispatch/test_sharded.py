import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tests.dispatch.reference import fill_buffers, random_routing
from tests.mesh.helpers import MESHES, Program, strategy_on
from tf_moe.dispatch.sharded import dispatch_sharded

K, E, D, SHARE = 2, 5, 3, 12


class ShardedTest(TestCase):
    """Each device is a slow dispatcher of its own."""

    def check(self, mesh, tokens, capacity=None, drop_by="position"):
        strategy = strategy_on(*mesh)
        shards = strategy.shards

        def function(index, weights, x):
            with tf.GradientTape() as tape:
                tape.watch([x, weights])
                plan = dispatch_sharded(index, weights, E, shards, capacity, drop_by)
                rows = plan.dispatch(x)
                y = plan.combine(2 * rows, weights)
            gradients = tape.gradient(y, [x, weights], y)
            self.assertEqual(plan.capacity, capacity)
            return plan.counts.counts, plan.slot, plan.dropped, plan.assigned, rows, y, *gradients

        program = Program(strategy, function)
        for _ in range(2):
            index, weights = random_routing(self.rng, tokens, K, E)
            x = self.normal(tokens, D)
            counts, slot, dropped, assigned, rows, y, d_x, d_weights = program(index, weights, x)
            devices = slot.shape[:2]
            if shards.batch_axis == "replica":  # the slices of the batch, by shard and replica
                of_device = np.arange(tokens).reshape(*devices[::-1], -1).swapaxes(0, 1)
            else:
                of_device = np.arange(tokens).reshape(*devices, -1)
            all_dropped = 0
            for n in np.ndindex(devices):
                mine = of_device[n]
                buffers, _ = fill_buffers(index[mine], weights[mine], E, None, drop_by)
                all_dropped += fill_buffers(index[mine], weights[mine], E, capacity, drop_by)[1]
                self.assertAllEqual(counts[n], [len(buffer) for buffer in buffers])
                order = np.array([a for buffer in buffers for a in buffer], int)
                self.assertAllClose(rows[n][: len(order)], x[mine][order // K])
                self.assertAllEqual(slot[n].reshape(-1)[order], range(len(order)))
            self.assertEqual(dropped, all_dropped)
            self.assertEqual(assigned, (weights > 0).sum())
            total = weights.sum(1, keepdims=True)
            self.assertAllClose(y, 2 * total * x, rtol=1e-5, atol=1e-5)
            self.assertAllClose(d_x, 2 * total * y, rtol=1e-5, atol=1e-5)
            expected = np.where(weights > 0, 2 * np.sum(x * y, 1, keepdims=True), 0)
            self.assertAllClose(np.where(weights > 0, d_weights, 0), expected, rtol=1e-4, atol=1e-4)
        self.assertEqual(program.traces, 1)
        if tokens % shards.devices == 0:  # rows stay on their tokens' devices
            self.assertEqual(program.specs[4], ["expert", "replica" if mesh[1] > 1 else "", "", ""])
            self.assertEqual(program.specs[5], [shards.batch_axis, ""])

    @parameterized.named_parameters((n, MESHES[n]) for n in ("2", "2x2", "4x2"))
    def test_drops_nothing(self, mesh):
        self.check(mesh, SHARE * mesh[0])

    def test_in_one_piece(self):
        self.check((2, 1), 2 * SHARE + 1)

    @parameterized.parameters(("position", 2, 24), ("weight", 2, 24), ("weight", 1, 25))
    def test_capacity(self, drop_by, capacity, tokens):
        self.check((2, 1), tokens, capacity, drop_by)
