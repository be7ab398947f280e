"""Adding a bias: values, and a gradient that does not stop growing."""

import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.ops.bias import add_bias


def gradient_of_bias(add, shape, dtype):
    rows, bias = tf.ones(shape, dtype), tf.zeros(shape[-1:], dtype)
    with tf.GradientTape() as tape:
        tape.watch([rows, bias])
        outputs = add(rows, bias)
    return tape.gradient(outputs, [rows, bias])


class AddBiasTest(TestCase):
    @parameterized.product(dtype=["float64", "float32", "float16", "bfloat16"], jit=[False, True])
    def test_gradient_of_many_rows(self, dtype, jit):
        rows, bias = tf.function(gradient_of_bias, jit_compile=jit)(add_bias, (64, 64, 3), dtype)
        self.assertAllEqual(tf.cast(rows, tf.float32), tf.ones((64, 64, 3)))
        self.assertAllEqual(tf.cast(bias, tf.float32), [4096.0] * 3)
        self.assertEqual(bias.dtype, dtype)

    def test_values(self):
        rows, bias = self.normal(3, 4, 5), self.normal(5)
        for dtype in ("float32", "float64", "bfloat16"):
            outputs = add_bias(tf.cast(rows, dtype), tf.cast(bias, dtype))
            self.assertAllClose(tf.cast(outputs, tf.float32), rows + bias, rtol=0.02, atol=0.02)

    def test_the_platform_still_needs_it(self):
        """When this fails, `add_bias` can be tf.nn.bias_add, and the shared expert layers of Keras."""
        self.assertEqual(float(gradient_of_bias(tf.nn.bias_add, (4096, 2), tf.bfloat16)[1][0]), 256)
        self.assertEqual(float(gradient_of_bias(tf.add, (4096, 2), tf.float16)[1][0]), 2048)
