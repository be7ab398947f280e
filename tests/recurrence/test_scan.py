"""The loop against a slow float64 reference, in both forms of its buffers."""

import keras
import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.base import TestCase
from tf_moe.recurrence.buffers import ListBuffers, StaticBuffers, buffers_for
from tf_moe.recurrence.lstm_gates import lstm_gates_for
from tf_moe.recurrence.scan import lstm_scan

ACTIVATIONS = {
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
}


def reference(z, recurrent, h, c, projection=None, mask=None, dropout=None, activations=("tanh", "sigmoid")):
    """One step and one sample after another, in float64: the h of every step [T, B, P], and the last h and c."""
    act, recurrent_act = (ACTIVATIONS[name] for name in activations)
    z, recurrent, h, c = (np.array(x, "float64") for x in (z, recurrent, h, c))
    units, hs = c.shape[1], np.zeros((*z.shape[:2], h.shape[1]))
    for t in range(z.shape[0]):
        for b in range(z.shape[1]):
            if mask is None or mask[t, b]:
                gates = []
                for k in range(4):
                    columns = slice(k * units, (k + 1) * units)
                    seen = h[b] if dropout is None else h[b] * dropout[k][b]
                    gates.append(z[t, b, columns] + seen @ recurrent[:, columns])
                i, f, g, o = gates
                c[b] = recurrent_act(f) * c[b] + recurrent_act(i) * act(g)
                output = recurrent_act(o) * act(c[b])
                h[b] = output if projection is None else output @ projection
            hs[t, b] = h[b]
    return hs, h, c


class LstmScanTest(TestCase):
    def case(self, T=4, B=3, units=5, projection=None, masked=False, drops=False):
        P = projection or units
        arguments = [0.7 * self.normal(*shape) for shape in ((T, B, 4 * units), (P, 4 * units), (B, P), (B, units))]
        if projection:
            arguments.append(self.normal(units, P))
        mask = self.rng.random((T, B)) < 0.6 if masked else None
        dropout = [(self.rng.random((B, P)) < 0.7) / 0.7 for _ in range(4)] if drops else None
        return arguments, mask, dropout

    def check(self, arguments, mask, dropout, buffers, keep=True, activations=("tanh", "sigmoid")):
        gates = lstm_gates_for(*(keras.activations.get(name) for name in activations))
        weights = [self.normal(*x.shape) for x in reference(*arguments, mask=mask, dropout=dropout)]

        def loss(*arguments):
            results = reference(*arguments, mask=mask, dropout=dropout, activations=activations)
            return sum(np.sum(w * x) for w, x in zip(weights, results, strict=True))

        @tf.function(autograph=False)  # as Keras traces a layer
        def run(*tensors):
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                results = lstm_scan(
                    *tensors,
                    gates=gates,
                    mask=mask,
                    dropout=None if dropout is None else [tf.constant(m, "float32") for m in dropout],
                    buffers=buffers,
                    keep=keep,
                )
                total = tf.add_n([tf.reduce_sum(w * x) for w, x in zip(weights, results, strict=True)])
            return results, tape.gradient(total, tensors)

        results, gradients = run(*[tf.constant(x) for x in arguments])
        expected = reference(*arguments, mask=mask, dropout=dropout, activations=activations)
        self.assertAllClose(results, expected, rtol=1e-5, atol=1e-5)
        for n, gradient in enumerate(gradients):  # along a random direction: central differences in float64
            direction = self.normal(*gradient.shape, dtype="float64")
            ends = []
            for side in (1e-7, -1e-7):
                moved = [np.array(x, "float64") for x in arguments]
                moved[n] += side * direction
                ends.append(loss(*moved))
            self.assertAllClose(np.sum(gradient * direction), (ends[0] - ends[1]) / 2e-7, rtol=1e-4, atol=1e-4)

    def test_values_and_gradients(self):
        for buffers, options in (
            (ListBuffers, {}),
            (ListBuffers, {"masked": True, "drops": True}),
            (ListBuffers, {"projection": 7, "masked": True}),
            (ListBuffers, {"T": 1, "B": 1, "units": 1}),
            (StaticBuffers, {"T": 3}),
            (StaticBuffers, {"T": 6, "projection": 2, "masked": True, "drops": True}),
        ):
            with self.subTest(buffers=buffers.__name__, **options):
                self.check(*self.case(**options), buffers)

    def test_no_steps(self):
        """A static time of 0 leaves the states as they are, and their gradients."""
        for buffers in (ListBuffers, StaticBuffers):
            (z, recurrent, h, c), *_ = self.case(T=0)
            arguments = [tf.constant(x) for x in (z, recurrent, h, c)]
            gates = lstm_gates_for(keras.activations.tanh, keras.activations.sigmoid)
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                hs, last_h, last_c = lstm_scan(*arguments, gates=gates, buffers=buffers)
                loss = tf.reduce_sum(last_h) + 2 * tf.reduce_sum(last_c)
            d_z, d_recurrent, d_h, d_c = tape.gradient(loss, arguments)
            self.assertEqual((hs.shape, d_z.shape), ((0, 3, 5), z.shape))
            self.assertAllEqual(last_h, h)
            self.assertAllEqual(last_c, c)
            for gradient, value in ((d_recurrent, 0), (d_h, 1), (d_c, 2)):
                self.assertAllEqual(gradient, tf.fill(gradient.shape, float(value)))

    def test_other_activations(self):
        for activations in (("softsign", "sigmoid"), ("tanh", "hard_sigmoid"), ("softsign", "softsign")):
            with self.subTest(activations=activations):
                self.check(*self.case(projection=3, masked=True), ListBuffers, activations=activations)

    def test_nothing_kept_gives_the_same_gradient(self):
        self.check(*self.case(projection=2, masked=True), ListBuffers, keep=False)

    @given(
        T=st.integers(1, 6),
        B=st.integers(1, 3),
        units=st.integers(1, 4),
        projection=st.one_of(st.none(), st.integers(1, 5)),
        masked=st.booleans(),
        drops=st.booleans(),
        static=st.booleans(),
    )
    @settings(max_examples=5, deadline=None)
    def test_any_shape(self, T, B, units, projection, masked, drops, static):
        self.check(*self.case(T, B, units, projection, masked, drops), StaticBuffers if static else ListBuffers)

    def test_a_row_that_softmax_couples(self):
        # softmax is not elementwise: its gradient must not be taken for a derivative of each element
        arguments, *_ = self.case()
        gates = lstm_gates_for(keras.activations.softmax, keras.activations.sigmoid)
        z, recurrent, h, c = map(tf.constant, arguments)

        def unrolled(z, recurrent, h, c):
            for t in range(z.shape[0]):
                i, f, g, o = tf.split(z[t] + h @ recurrent, 4, -1)
                c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.nn.softmax(g)
                h = tf.sigmoid(o) * tf.nn.softmax(c)
            return h

        found, expected = [], []
        for function, gradients in ((lambda *x: lstm_scan(*x, gates=gates)[1], found), (unrolled, expected)):
            with tf.GradientTape() as tape:
                tape.watch([z, recurrent, h, c])
                loss = tf.reduce_sum(function(z, recurrent, h, c) * self_weights(h))
            gradients.extend(tape.gradient(loss, [z, recurrent, h, c]))
        self.assertAllClose(found, expected, rtol=1e-4, atol=1e-6)


def self_weights(h):
    return tf.reshape(tf.range(1.0, 1 + tf.size(h, tf.int32).numpy()), h.shape)


class BuffersTest(TestCase):
    def test_both_forms_hold_what_was_written(self):
        rows = self.normal(3, 2, 4)
        for form in (ListBuffers, StaticBuffers):
            buffer = form.empty(3, tf.zeros([2, 4]))
            for t in (2, 0, 1):
                buffer = form.write(buffer, tf.constant(t), tf.constant(rows[t]))
            self.assertAllEqual(form.row(form.stack(buffer, len(rows)), tf.constant(2)), rows[2])
            self.assertAllEqual(form.stack(buffer, 3), rows)
            self.assertAllEqual(form.reverse(tf.constant(rows)), rows[::-1])
            self.assertAllEqual(form.row(tf.constant(rows), tf.constant(1)), rows[1])

    def test_ordinary_variables_take_lists(self):
        self.assertIs(buffers_for(tf.Variable(1.0)), ListBuffers)
