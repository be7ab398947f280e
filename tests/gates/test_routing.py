import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.gates.routing import Routing, count_by_expert, dense_gates, routing_of_choices, routing_of_gates

# Three tokens, two choices, four experts; the second choice of token 1 has zero weight: it is none.
INDEX = tf.constant([[0, 2], [2, 3], [2, 0]])
WEIGHTS = tf.constant([[0.75, 0.25], [1.0, 0.0], [0.5, 0.5]])


class RoutingTest(TestCase):
    def test_routing_of_choices(self):
        routing = routing_of_choices(INDEX, WEIGHTS, 4, loss=0.5)
        self.assertAllClose(routing.importance, [1.25, 0, 1.75, 0])
        self.assertAllEqual(routing.load, [2, 0, 3, 0])
        self.assertEqual(routing.loss, 0.5)

    def test_count_by_expert(self):
        with tf.GradientTape() as tape:
            tape.watch(WEIGHTS)
            count = count_by_expert(INDEX, WEIGHTS, 4)
        self.assertEqual(count.dtype, tf.float32)
        self.assertAllEqual(count, [2, 0, 3, 0])
        self.assertIsNone(tape.gradient(count, WEIGHTS))

    def test_dense_gates(self):
        routing = Routing(INDEX, WEIGHTS, None, tf.zeros(4), tf.zeros(4))
        self.assertAllEqual(dense_gates(routing, 4), [[0.75, 0, 0.25, 0], [0, 0, 1, 0], [0.5, 0, 0.5, 0]])
        self.assertAllEqual(dense_gates(routing, 4096)[2, :4], [0.5, 0, 0.5, 0])
        self.assertIsNone(dense_gates(routing, 4097))
        empty = Routing(tf.zeros([0, 2], tf.int32), tf.zeros([0, 2]), None, tf.zeros(4), tf.zeros(4))
        self.assertAllEqual(dense_gates(empty, 4), np.zeros((0, 4)))


class RoutingOfGatesTest(TestCase):
    # Token 0 meets experts 2 and 0, token 1 none, token 2 expert 1.
    GATES = np.array([[0.3, 0, 0.7], [0, 0, 0], [0, 0.2, 0]], "float32")

    def test_as_many_choices_as_the_busiest_token_has(self):
        routing = routing_of_gates(tf.constant(self.GATES), loss=0.5)
        self.assertAllEqual(routing.expert_index[:, 0], [2, 0, 1])
        self.assertAllClose(routing.combine_weights, [[0.7, 0.3], [0, 0], [0.2, 0]])
        self.assertAllClose(routing.importance, [0.3, 0.2, 0.7])
        self.assertAllEqual(routing.load, [1, 1, 1])
        self.assertEqual(routing.loss, 0.5)

    def test_one_place_where_nothing_is_chosen(self):
        self.assertAllEqual(routing_of_gates(tf.zeros([2, 3])).combine_weights, np.zeros((2, 1)))
        self.assertEqual(routing_of_gates(tf.zeros([0, 3])).combine_weights.shape, (0, 1))

    def test_static_under_xla(self):
        routing = tf.function(lambda x: routing_of_gates(x)[:2], jit_compile=True)(tf.constant(self.GATES))
        self.assertAllEqual(routing[0], np.tile([0, 1, 2], (3, 1)))
        self.assertAllEqual(routing[1], self.GATES)

    def test_all_are_kept_in_order(self):
        routing = routing_of_gates(tf.constant(self.GATES), keep_all=True)
        self.assertAllEqual(routing.expert_index, np.tile([0, 1, 2], (3, 1)))
        self.assertAllEqual(routing.combine_weights, self.GATES)
