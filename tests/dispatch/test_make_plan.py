from unittest import mock

import tensorflow as tf

from tests.base import TestCase
from tests.dispatch.reference import random_routing
from tests.mesh.helpers import Program, strategy_on
from tf_moe.dispatch.make_plan import make_plan

TOKENS, K, E, D = 24, 2, 4, 3


class MakePlanTest(TestCase):
    def plan(self, index, weights, tokens=None, **changes):
        settings = {"capacity_factor": None, "drop_by": "position", "takes_block": True, "shards": None, **changes}
        tokens = self.normal(TOKENS, D) if tokens is None else tokens
        return make_plan(tf.convert_to_tensor(tokens), index, weights, E, K, **settings)

    def test_without_a_capacity_nothing_is_dropped(self):
        index, weights = random_routing(self.rng, TOKENS, K, E)
        for takes_block in (True, False):
            plan = self.plan(index, weights, takes_block=takes_block)
            self.assertIsNone(plan.capacity)
            self.assertEqual(plan.places is not None, takes_block)
            self.assertEqual(plan.dropped, 0)
            self.assertAllEqual(plan.slot.numpy() >= 0, weights > 0)

    def test_integers_of_any_kind(self):
        index, weights = random_routing(self.rng, TOKENS, K, E)
        for changes in ({}, {"capacity_factor": 1.0}):
            plan, expected = (
                self.plan(tf.cast(index, tf.int64), weights, **changes),
                self.plan(index, weights, **changes),
            )
            self.assertAllEqual(plan.slot, expected.slot)

    def test_capacity_is_a_share_of_the_tokens(self):
        """It is static where the number of tokens is, whatever that of the gate's choices."""
        index = tf.zeros([TOKENS, K], tf.int32)
        weights = tf.reshape(tf.range(1.0, TOKENS * K + 1), [TOKENS, K])
        for drop_by, kept in (("position", range(18)), ("weight", range(TOKENS * K - 18, TOKENS * K))):
            plan = self.plan(index, weights, capacity_factor=1.5, drop_by=drop_by)
            self.assertEqual(plan.capacity, 18)  # 1.5 * 2 * 24 / 4
            self.assertAllEqual(tf.where(tf.reshape(plan.slot, [-1]) >= 0)[:, 0], [*kept])

        @tf.function(input_signature=[tf.TensorSpec([None, K], tf.int32), tf.TensorSpec([None, K])], autograph=False)
        def traced(index, weights):
            static = self.plan(index, weights, tf.zeros([TOKENS, D]), capacity_factor=1.5).capacity
            return static, self.plan(index, weights, tf.zeros([tf.shape(index)[0], D]), capacity_factor=1.5).capacity

        with mock.patch("tf_moe.dispatch.make_plan.capacity_of", side_effect=lambda size, *_: size) as sizes:
            self.assertAllEqual(traced(index, weights), (TOKENS, TOKENS))
        self.assertEqual([isinstance(call.args[0], int) for call in sizes.call_args_list], [True, False])

    def test_on_a_mesh_a_capacity_is_of_each_device(self):
        strategy = strategy_on(4, 2)
        capacities = []

        def function(index, weights, x):
            for factor in (None, 1.5):
                plan = self.plan(index, weights, x, capacity_factor=factor, shards=strategy.shards)
                capacities.append(plan.capacity)
            return plan.slot

        slot = Program(strategy, function)(*random_routing(self.rng, TOKENS, K, E), self.normal(TOKENS, D))
        self.assertEqual(capacities, [None, 5])  # 1.5 * 2 * (24 / 4) / 4, rounded up
        self.assertEqual(slot.shape, (2, 2, TOKENS // 4, K))
