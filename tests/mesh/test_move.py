"""How rows are exchanged: what arrives, and what the compiled program sends."""

import collections
import math

import tensorflow as tf
from absl.testing import parameterized
from tensorflow.python.eager import context

from tests.base import TestCase
from tests.mesh.helpers import MESHES, Program, strategy_on
from tf_moe.layers import SparseMoE
from tf_moe.mesh.move import Exchange, Stay
from tf_moe.mesh.windows import Window
from tf_moe.ops.grouped_mesh import sizes

G, C, D = 8, 3, 2


class MoveTest(TestCase):
    @parameterized.named_parameters(MESHES.items())
    def test_there_and_back(self, mesh):
        strategy = strategy_on(*mesh)
        shards = strategy.shards
        move = Exchange(shards)

        def function(x, whole):
            results = []
            for part in (shards.relayout_tokens(x), shards.whole(whole)):
                there = move.there(part)
                results += [there, move.back(2 * there, Window(part[..., 0], None))]
            return results

        x, whole = self.normal(shards.shards, shards.replicas, G, C, D), self.normal(1, 1, G, C, D)
        program = Program(strategy, function)
        there, back, whole_there, whole_back = program(x, whole)
        # At an expert's device, first the rows of replica 0 of every shard, then those of replica 1.
        self.assertAllEqual(there, x.transpose(2, 1, 0, 3, 4).reshape(G, -1, D))
        self.assertAllEqual(back, 2 * x)
        self.assertAllEqual(whole_there, whole[0, 0])
        self.assertAllEqual(whole_back, 2 * whole)
        if shards.devices > 1:
            replica = "replica" if shards.replicas > 1 else ""
            specs = [["expert", replica, ""], ["expert", replica, "", "", ""], ["expert", "", ""], [""] * 5]
            self.assertEqual(program.specs, specs)

    def test_staying_is_nothing(self):
        x = self.normal(2, 1, G, C, D)
        self.assertIs(Stay.there(x), x)
        self.assertIs(Stay.back(x, None), x)


class DTensorsAllToAllTest(TestCase):
    """What DTensor makes of a relayout from one split dimension to another."""

    def relayout(self, mesh, x, moves):
        strategy = strategy_on(*mesh)
        relayout = strategy.shards.relayout

        def function(x):
            return [relayout(relayout(x, {a: "expert"}), {b: "expert"}) for a, b in moves]

        return Program(strategy, function)(x)

    @parameterized.named_parameters(("2", (2, 1)), ("4", (4, 1)), ("2x2", (4, 2)))
    def test_from_and_to_the_first_dimension_is_right(self, mesh):
        x = self.normal(4, 8, 12, 3)
        for moved in self.relayout(mesh, x, [(0, 1), (0, 2), (1, 0), (2, 0)]):
            self.assertAllEqual(moved, x)

    @parameterized.named_parameters(("2", (2, 1)), ("4", (4, 1)), ("2x2", (4, 2)))
    def test_between_other_dimensions_is_wrong(self, mesh):
        x = self.normal(4, 8, 12, 3)
        for moved in self.relayout(mesh, x, [(1, 2), (2, 1)]):
            self.assertNotAllEqual(
                moved,
                x,
                "DTensor's all-to-all between two dimensions neither of which is the first is right now: tokens may be "
                "laid out as (R, N, ...) again, and the detours in tf_moe.mesh.move.Exchange and Shards can go.",
            )


class CompiledTest(TestCase):
    """What devices send one another in a step of SparseMoE, read from the program that DTensor compiles."""

    E, D, H, K, SHARE = 8, 4, 20, 2, 64

    def sent(self, mesh, **arguments):
        """Numbers in each collective operation of a forward and a backward pass, by operation."""
        strategy = strategy_on(*mesh)
        with strategy.scope():
            layer = SparseMoE(self.E, self.H, k=self.K, **arguments)
            layer.build((None, self.D))

        def step(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(layer(x, training=True) ** 2) + sum(layer.losses)
            return tape.gradient(loss, [x, *(v.value for v in layer.trainable_variables)])

        before = set(context.context().list_function_names())
        program = Program(strategy, step)
        program.run(self.normal(self.SHARE * strategy.shards.devices, self.D))
        self.assertEqual(program.specs[-2:], [["expert", "", ""]] * 2)
        sent = collections.defaultdict(list)
        for name in set(context.context().list_function_names()) - before:
            for node in context.context().get_function_def(name).node_def:
                if node.op.startswith("Collective"):
                    (shape,) = node.attr["_output_shapes"].list.shape
                    sent[node.op.rstrip("V234")].append(math.prod(d.size for d in shape.dim))
        return sent

    def assert_exchanges(self, sent):
        """Rows there and outputs back, forward; gradients there and back, backward. In a round the rows once more."""
        block, a_round = (self.E * places * self.D for places in sizes(self.SHARE * self.K, self.E))
        expected = {block: 4, a_round: 5}
        self.assertEqual(collections.Counter(sent.pop("CollectiveAllToAll")), expected)

    def test_replicas_sum_the_gradients_of_their_shard(self):
        sent = self.sent((4, 2))
        self.assert_exchanges(sent)
        shard = self.E * self.D * self.H // 2
        self.assertEqual(sent["CollectiveReduce"].count(shard), 4)  # both kernels, in the block and in a round
        # A batch is split over the shards, so replicas collect the tokens of theirs. Nobody collects all.
        self.assertLess(max(sum(sent.values(), [])), min(2 * shard, 4 * self.SHARE * self.D), sent)

    def test_recomputing_exchanges_no_more(self):
        self.assert_exchanges(self.sent((2, 1), recompute=True))
