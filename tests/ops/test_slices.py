import tensorflow as tf

from tests.base import TestCase
from tf_moe.ops.slices import add_to_slice, owns_its_memory, write_rows


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

    def test_rows(self):
        buffer, rows = self.normal(5, 3), self.normal(2, 3)
        expected = buffer.copy()
        expected[1:3] = rows
        for form in (write_rows, tf.function(write_rows)):
            given = tf.constant(buffer)
            self.assertAllClose(form(given, tf.constant(1), tf.constant(rows)), expected)
            self.assertAllClose(given, expected)

    def test_gradients_of_rows(self):
        rows, upstream = tf.constant(self.normal(2, 3)), tf.constant(self.normal(5, 3))
        with tf.GradientTape() as tape:
            tape.watch(rows)
            y = write_rows(tf.zeros([5, 3]), tf.constant(1), 2.0 * rows)
        self.assertAllClose(tape.gradient(y, rows, upstream), 2 * upstream[1:3])
