import tensorflow as tf

from tests.base import TestCase
from tf_moe.ops.gradients import gradients_of, with_gradients


class GradientsTest(TestCase):
    def test_output_and_gradients(self):
        """As often as they are asked for; zeros for an input that has no part in the output."""
        inputs = [tf.constant(self.normal(3, 2)) for _ in range(3)]

        def function(x, y, unused):
            return x * y**2

        d = tf.constant(self.normal(3, 2))
        output, gradients = with_gradients(function, inputs)
        x, y, _ = inputs
        expected = [d * y**2, 2 * d * x * y, tf.zeros([3, 2])]
        self.assertAllClose(output, x * y**2)
        self.assertAllClose(gradients(d), expected)
        self.assertAllClose(gradients(2 * d), [2 * gradient for gradient in expected])
        self.assertAllClose(gradients_of(function, inputs, d), expected)
