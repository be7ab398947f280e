import tensorflow as tf

from tests.base import TestCase
from tf_moe.ops.slices import add_to_slice, owns_its_memory


class SlicesTest(TestCase):
    def test_adds(self):
        stack, value = self.normal(3, 4, 5), self.normal(4, 5)
        expected = stack.copy()
        expected[1] += value
        for in_place in (False, True):
            for form in (add_to_slice, tf.function(add_to_slice)):
                given = tf.constant(stack)
                self.assertAllClose(form(given, tf.constant(1), tf.constant(value), in_place), expected)
                self.assertAllClose(given, expected if in_place else stack)

    def test_who_owns_its_memory(self):
        @tf.function
        def ask(x, y):
            product = tf.matmul(x, y)
            return [
                owns_its_memory(t) for t in (product, tf.reduce_sum(product, 0), tf.einsum("gab,gbc->gac", x, y), x)
            ]

        self.assertEqual([bool(b) for b in ask(tf.ones([1, 2, 2]), tf.ones([1, 2, 2]))], [True, False, True, False])
        self.assertTrue(owns_its_memory(tf.ones([1, 2, 2])))
        self.assertFalse(owns_its_memory(tf.ones([2, 2])))
