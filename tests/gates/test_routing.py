import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.gates.routing import Routing, count_by_expert, dense_gates, routing_of_choices

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
            count = count_by_expert(WEIGHTS, INDEX, 4)
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
