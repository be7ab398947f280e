"""The LSTM with an attention against single steps in NumPy, and against the layer's own step."""

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tests.layers import test_attention
from tf_moe.layers import AttentiveLSTM

B, T, S, D, M, UNITS, P = 3, 5, 4, 2, 6, 5, 3
MASK = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [1, 1, 0, 0, 0]], bool)
SOURCE_MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [0, 0, 0, 0]], bool)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(x, source, weights, score, mask, source_mask):
    """Outputs and contexts, one step and one sentence after another."""
    kernel, recurrent, bias, projection, u, w, v = weights
    outputs, contexts = np.zeros((B, T, P)), np.zeros((B, T, M))
    for b in range(B):
        h, c, context = np.zeros(P), np.zeros(UNITS), np.zeros(M)
        for t in range(T):
            if mask[b, t]:
                z = np.concatenate([x[b, t], context]) @ kernel + h @ recurrent + bias
                i, f, g, o = np.split(z, 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = (sigmoid(o) * np.tanh(c)) @ projection
                read, _ = test_attention.reference(
                    h[None, None], source[b : b + 1], u, w, v, score, source_mask[b : b + 1]
                )
                context = read[0, 0]
            outputs[b, t], contexts[b, t] = h, context
    return outputs, contexts


class AttentiveLSTMTest(TestCase):
    def layer(self, score="product", dtype="float64", projection=P):
        layer = AttentiveLSTM(UNITS, projection, attention_units=4, score=score, dtype=dtype)
        layer.build((B, T, D), (B, S, M))
        layer.set_weights([0.7 * self.normal(*w.shape) for w in layer.weights])
        return layer

    def inputs(self, dtype="float64"):
        return tf.constant(self.normal(B, T, D, dtype=dtype)), tf.constant(self.normal(B, S, M, dtype=dtype))

    @staticmethod
    def by_steps(layer, x, source):
        state, keys = layer.initial_state(B), layer.attention.keys(source)
        outputs, contexts = [], []
        for t in range(x.shape[1]):
            new, _ = layer.step(x[:, t], state, keys, source, tf.constant(SOURCE_MASK))
            state = type(state)(*(tf.where(MASK[:, t : t + 1], *pair) for pair in zip(new, state, strict=True)))
            outputs.append(state.h), contexts.append(state.context)
        return tf.stack(outputs, 1), tf.stack(contexts, 1)

    @staticmethod
    def whole(layer, x, source):
        return layer(x, source, inputs_mask=MASK, source_mask=SOURCE_MASK)

    @staticmethod
    def results_of(run, layer, x, source):
        with tf.GradientTape() as tape:
            tape.watch([x, source])
            found = run(layer, x, source)
            loss = tf.add_n([tf.reduce_sum(tf.cos(y) * y) for y in found])
        return [*found, *tape.gradient(loss, [x, source, *(w.value for w in layer.trainable_weights)])]

    @parameterized.parameters("product", "additive")
    def test_values_and_gradients(self, score):
        """Values are those of NumPy; gradients those that TensorFlow finds step by step."""
        layer, (x, source) = self.layer(score), self.inputs()
        weights = [w.numpy() for w in layer.weights]
        expected = reference(x.numpy(), source.numpy(), weights, score, MASK, SOURCE_MASK)
        self.assertAllClose(self.whole(layer, x, source), expected, rtol=1e-10, atol=1e-12)
        expected = self.results_of(self.by_steps, layer, x, source)
        for found in (self.results_of, tf.function(self.results_of)):
            for ours, want in zip(found(self.whole, layer, x, source), expected, strict=True):
                self.assertAllClose(ours, want, rtol=1e-9, atol=1e-12)
        self.assertGreater(min(np.abs(x).max() for x in expected), 0)  # there is something to compare

    def test_xla(self):
        layer, (x, source) = self.layer(projection=None), self.inputs()
        found = tf.function(self.results_of, jit_compile=True)(self.whole, layer, x, source)
        for ours, want in zip(found, self.results_of(self.by_steps, layer, x, source), strict=True):
            self.assertAllClose(ours, want, rtol=1e-9, atol=1e-12)

    def test_several_rows_for_one_source(self):
        """As a beam search has them: rows on end that share a source."""
        layer, (x, source) = self.layer(), self.inputs()
        keys, mask = layer.attention.keys(source), tf.constant(SOURCE_MASK)
        state = layer.initial_state(2 * B)
        state = type(state)(*(tf.constant(self.normal(*y.shape, dtype="float64")) for y in state))
        rows = tf.repeat(x[:, 0], 2, axis=0) + self.normal(2 * B, D, dtype="float64")
        found = layer.step(rows, state, keys, source, mask)
        for n in range(2):
            part = tf.nest.map_structure(lambda y, n=n: y[n::2], (rows, state))
            expected = layer.step(*part, keys, source, mask)
            for ours, want in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
                self.assertAllClose(ours[n::2], want, rtol=1e-12)

    def test_in_a_functional_model_of_open_shapes(self):
        inputs, source = keras.Input((None, D)), keras.Input((None, M))
        masked = [keras.layers.Masking()(y) for y in (inputs, source)]
        outputs = AttentiveLSTM(UNITS, P, score="additive")(*masked)
        self.assertEqual([y.shape for y in outputs], [(None, None, P), (None, None, M)])
        model = keras.Model([inputs, source], list(outputs))
        x, s = (y.numpy() for y in self.inputs("float32"))
        x[~MASK], s[~SOURCE_MASK] = 0, 0
        self.assertAllClose(model([x, s]), self.whole(model.layers[-1], x, s))
        again = keras.Model.from_config(model.get_config())
        again.set_weights(model.get_weights())
        self.assertAllClose(again([x, s]), model([x, s]))

    def test_bad_calls(self):
        x, source = self.inputs("float32")
        for call, pattern in (
            (lambda: AttentiveLSTM(0), "units=0"),
            (lambda: AttentiveLSTM(3, attention_units=1.5), "attention_units=1.5"),
            (lambda: AttentiveLSTM(3)(x[:, 0], source), r"inputs must be \(batch, time, width\).*\(3, 2\)"),
            (lambda: AttentiveLSTM(3)(x, source[0]), r"source must be \(batch, time, width\).*\(4, 6\)"),
            (lambda: AttentiveLSTM(3)(x[:, :0], source), r"a step at least.*\(3, 0, 2\)"),
            (lambda: AttentiveLSTM(3)(x, source, inputs_mask=MASK[:2]), r"mask \(2, 5\), inputs \(3, 5, 2\)"),
        ):
            with self.assertRaisesRegex(ValueError, pattern):
                call()
        layer = AttentiveLSTM(3)
        layer(x, source)
        for arguments, pattern in (
            ((x[:, 0], source), r"inputs must be .* width 2, as when it was built.*shape \(3, 2\)"),
            ((x, source[..., :2]), r"source must be .* width 6, as when it was built.*shape \(3, 4, 2\)"),
            ((x, source[:2]), r"source must have the batch of inputs.*\(2, 4, 6\), inputs \(3, 5, 2\)"),
        ):
            with self.assertRaisesRegex(ValueError, pattern):
                layer(*arguments)

    def test_half_precision(self):
        layer, (x, source) = self.layer(dtype="mixed_bfloat16"), self.inputs("float32")
        # Small weights: steps over steps of saturated ones make much of rounding.
        layer.set_weights([0.5 * w for w in layer.get_weights()])
        found = self.results_of(self.whole, layer, x, source)
        exact = AttentiveLSTM(UNITS, P, attention_units=4)
        exact.build((B, T, D), (B, S, M))
        exact.set_weights(layer.get_weights())
        self.assertEqual(found[0].dtype, tf.bfloat16)
        for ours, want in zip(found, self.results_of(self.whole, exact, x, source), strict=True):
            rounding = np.linalg.norm(tf.cast(ours, tf.float32) - want)
            self.assertLess(rounding, 0.1 * np.linalg.norm(want) + 0.02 * np.sqrt(np.size(want)))
