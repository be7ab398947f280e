"""The loop of any step against the same steps one after another, which TensorFlow differentiates."""

import tensorflow as tf

from tests.base import TestCase
from tf_moe.recurrence.buffers import ListBuffers, StaticBuffers
from tf_moe.recurrence.steps import scan_steps

T, B, D, P, Q = 5, 3, 4, 2, 6


def step(inputs, state, shared, product):
    """Two inputs, two parts of a state of different widths, a matrix for all rows and one for each."""
    (x, y), (h, r), (v, keys) = inputs, state, shared
    h = tf.tanh(x + product(0, tf.concat([h, r], -1)) * v) + tf.reduce_sum(keys * tf.expand_dims(h, 1), 1)
    return h, tf.sin(product(1, h) + y)


def unrolled(inputs, state, matrices, shared, mask=None):
    def product(n, a):
        return a @ matrices[n] if len(matrices[n].shape) == 2 else tf.squeeze(tf.expand_dims(a, 1) @ matrices[n], 1)

    states = []
    for t in range(inputs[0].shape[0]):
        new = step([x[t] for x in inputs], state, shared, product)
        if mask is not None:
            new = [tf.where(mask[t][:, None], a, b) for a, b in zip(new, state, strict=True)]
        state = new
        states.append(state)
    return [tf.stack(x) for x in zip(*states, strict=True)]


class ScanStepsTest(TestCase):
    def arguments(self, dtype="float64"):
        shapes = [(T, B, P), (T, B, Q)], [(B, P), (B, Q)], [(P + Q, P), (B, P, Q)], [(P,), (B, D, P)]
        return [[tf.constant(0.5 * self.normal(*shape), dtype) for shape in group] for group in shapes]

    @staticmethod
    def results_of(scan, arguments):
        """The states of all steps, and the gradients of a mixture of them by all arguments."""
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            states = scan(*arguments)
            loss = tf.add_n([tf.reduce_sum(tf.cos(x) * x) for x in states])
        return [*states, *tf.nest.flatten(tape.gradient(loss, arguments))]

    def check(self, buffers, run=lambda f: f, masked=True):
        arguments = self.arguments()
        mask = tf.constant(self.rng.random((T, B)) < 0.6) if masked else None
        expected = self.results_of(lambda *a: unrolled(*a, mask=mask), arguments)
        scan = run(lambda *a: self.results_of(lambda *b: scan_steps(step, *b, mask=mask, buffers=buffers), a))
        for ours, want in zip(scan(*arguments), expected, strict=True):
            self.assertAllClose(ours, want, rtol=1e-10, atol=1e-12)

    def test_equals_the_unrolled_steps(self):
        for buffers in (ListBuffers, StaticBuffers):
            with self.subTest(buffers=buffers.__name__):
                self.check(buffers)
                self.check(buffers, tf.function, masked=False)

    def test_any_batch_and_time(self):
        arguments = self.arguments()
        states, matrices, shared = [(None, P), (None, Q)], [(P + Q, P), (None, P, Q)], [(P,), (None, D, P)]
        open_shapes = [(None, *shape) for shape in states], states, matrices, shared
        signature = [[tf.TensorSpec(shape, tf.float64) for shape in group] for group in open_shapes]
        scan = tf.function(lambda *a: self.results_of(lambda *b: scan_steps(step, *b), a), input_signature=signature)
        for ours, want in zip(scan(*arguments), self.results_of(unrolled, arguments), strict=True):
            self.assertAllClose(ours, want, rtol=1e-10, atol=1e-12)

    def test_each_matrix_once(self):
        """What the hand-written gradient takes for granted."""
        inputs, state, matrices, shared = self.arguments()
        for numbers, pattern in (((0, 0), "number 0 twice"), ((1,), r"without numbers \{0\}")):

            def wrong(inputs, state, shared, product, numbers=numbers):
                h, r = state
                for n in numbers:
                    r = r + tf.reduce_sum(product(n, tf.concat([h, r], -1)[:, : matrices[n].shape[-2]]))
                return h, r

            with self.assertRaisesRegex(ValueError, pattern), tf.GradientTape() as tape:
                tape.watch(state)
                tape.gradient(scan_steps(wrong, inputs, state, matrices, shared), state)

    def test_sums_of_gradients_in_half_precision_lose_nothing(self):
        """Small parts of the gradient of what all steps share: summed in bfloat16 they would stop at 256."""
        x, shared = tf.zeros([500, 1, 1], tf.bfloat16), tf.zeros([1], tf.bfloat16)

        @tf.function
        def gradient(x, shared):
            with tf.GradientTape() as tape:
                tape.watch(shared)
                (states,) = scan_steps(lambda x, state, shared, _: [x[0] + shared[0]], [x], [x[0]], shared=[shared])
                total = tf.reduce_sum(tf.cast(states, tf.float32))
            return tape.gradient(total, shared)

        self.assertAllClose(tf.cast(gradient(x, shared), tf.float32), [500.0], rtol=0.01)
