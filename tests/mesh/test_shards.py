import itertools

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from tensorflow.experimental import dtensor

from tests.base import TestCase
from tests.mesh.helpers import MESHES, Program, strategy_on
from tf_moe.mesh import shards as module
from tf_moe.mesh.shards import Shards


class ShardsTest(TestCase):
    def test_sizes(self):
        for (devices, replicas), pieces, axis in zip(
            MESHES.values(), (1, 2, 4, 2, 4), ("expert", "expert", "expert", "expert", "replica"), strict=True
        ):
            shards = strategy_on(devices, replicas).shards
            self.assertEqual((shards.devices, shards.replicas), (devices, replicas))
            self.assertEqual(shards.shards, devices // replicas)
            self.assertEqual((shards.batch_axis, shards.batch_pieces), (axis, pieces))
            self.assertTrue(shards.splits_batch(5 * pieces))
            self.assertEqual(shards.splits_batch(5 * pieces + 1), pieces == 1)
            self.assertEqual(shards.share(5 * devices), 5)
            if devices > 1:
                self.assertEqual(shards.share(5 * devices + 1), 5 * devices + 1)

    @parameterized.named_parameters(MESHES.items())
    def test_split_join_and_whole(self, mesh):
        strategy = strategy_on(*mesh)
        shards = strategy.shards
        shape = (shards.shards, shards.replicas)

        def function(even, odd):
            parts, piece = shards.split(even), shards.split(odd)
            return parts, piece, shards.join(2 * parts), shards.join(2 * piece), shards.whole(even)

        program = Program(strategy, function)
        even, odd = self.normal(3 * shards.devices, 2), self.normal(3 * shards.devices + 1, 2)
        parts, piece, again, again_odd, whole = program(even, odd)
        if shards.batch_axis == "replica":
            expected = even.reshape(*shape[::-1], 3, 2).swapaxes(0, 1)
        else:
            expected = even.reshape(*shape, 3, 2)
        self.assertAllEqual(parts, expected)
        replica = "replica" if shards.replicas > 1 else ""
        self.assertEqual(program.specs[0], ["expert", replica, "", ""])
        if shards.devices > 1:
            self.assertAllEqual(piece, odd[None, None])
            self.assertEqual(program.specs[1], [""] * 4)
            self.assertEqual(program.specs[3], ["", ""])
            self.assertEqual(program.specs[2], [shards.batch_axis, ""])
        self.assertAllEqual(again, 2 * even)
        self.assertAllEqual(again_odd, 2 * odd)
        self.assertAllEqual(whole, even)
        self.assertEqual(program.specs[4], ["", ""])

    def test_where_variables_are(self):
        strategy = strategy_on(4, 2)
        with strategy.scope():
            variable = tf.Variable(tf.zeros([2]))
            weight = keras.Variable(np.zeros(2))
        for v in (variable, weight):
            self.assertEqual(module.shards_of(v).mesh, strategy.mesh)
            with module.computed_where(v) as shards:
                self.assertEqual(shards.mesh, strategy.mesh)
                self.assertIs(module.current_shards(), shards)
                with module.computed_where(tf.Variable(1.0)):
                    self.assertIsNone(module.current_shards())
            self.assertIsNone(module.current_shards())
        for v in (tf.Variable(1.0), keras.Variable(np.zeros(2)), None):
            self.assertIsNone(module.shards_of(v))

    def test_layouts_of_experts(self):
        mesh = dtensor.create_mesh([("replica", 2), ("expert", 2)], devices=[f"CPU:{n}" for n in range(4)])
        for rank in (1, 3):
            specs = ["expert", *itertools.repeat(dtensor.UNSHARDED, rank - 1)]
            self.assertEqual(Shards(mesh).experts_layout(rank), dtensor.Layout(specs, mesh))
