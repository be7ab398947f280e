import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.gates.linear import LinearGate


class LinearGateTest(TestCase):
    def test_kernel_and_logits(self):
        gate = LinearGate(4, 2, "ones")
        gate.build((None, 3))
        self.assertEqual([w.name for w in gate.weights], ["kernel"])
        self.assertAllEqual(gate.kernel, np.ones((3, 4)))
        x = self.normal(5, 3)
        self.assertAllClose(gate.logits(x), np.tile(x.sum(axis=1, keepdims=True), (1, 4)), atol=1e-6)

    def test_several(self):
        gate = LinearGate(4, 2, "ones", num_gates=2)
        gate.build((None, 3))
        gate.kernel.assign(self.normal(2, 3, 4))
        x, ids = tf.constant(self.normal(5, 3)), np.array([1, 0, 2, 1, 0], "int32")  # the third has none
        expected = [x[t].numpy() @ gate.kernel.numpy()[g] if g < 2 else np.zeros(4) for t, g in enumerate(ids)]
        self.assertAllClose(gate.logits(x, ids), expected, atol=1e-6)

    def test_the_z_loss_is_of_training(self):
        # log(4 e^1) = 1 + log 4, and log 4, of which the mask takes the first.
        logits, gate = np.array([[1.0] * 4, [0.0] * 4], "float32"), LinearGate(4, 2, z_loss_weight=0.5)
        self.assertAllClose(gate.weighted_z_loss(logits, None, True), ((1 + np.log(4)) ** 2 + np.log(4) ** 2) / 4)
        self.assertAllClose(gate.weighted_z_loss(logits, np.array([False, True]), True), np.log(4) ** 2 / 2)
        self.assertEqual(gate.weighted_z_loss(logits, None, False), 0.0)
        self.assertEqual(LinearGate(4, 2).weighted_z_loss(logits, None, True), 0.0)
