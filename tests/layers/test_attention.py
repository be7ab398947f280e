"""Both attentions against loops in NumPy."""

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import references
from tests.base import TestCase
from tf_moe.layers import Attention

B, T, S, DY, DX, UNITS = 2, 3, 4, 5, 6, 7
MASK = np.array([[True, False, True, True], [True, True, False, False]])


def reference(y, x, u, w, v, score, mask=None):
    """A(x_i, y_j), its softmax over i and the mean of x_i, each for itself: context (B, T, DX), weights (B, T, S)."""
    context, weights = np.zeros((*y.shape[:2], x.shape[2])), np.zeros((*y.shape[:2], x.shape[1]))
    for b, j in np.ndindex(y.shape[:2]):
        places = [i for i in range(x.shape[1]) if mask is None or mask[b, i]]
        scores = []
        for i in places:
            a, q = x[b, i] @ u, y[b, j] @ w
            hidden = np.tanh(a) * np.tanh(q) if score == "product" else np.tanh(a + q)
            scores.append(sum(v[d] * hidden[d] for d in range(len(v))))
        if places:
            weights[b, j, places] = references.softmax(np.array(scores))
        for i in places:
            context[b, j] += weights[b, j, i] * x[b, i]
    return context, weights


class AttentionTest(TestCase):
    def layer(self, score="product", dtype="float64", **arguments):
        layer = Attention(UNITS, score, dtype=dtype, **arguments)
        layer.build((B, T, DY), (B, S, DX))
        layer.set_weights([self.normal(*w.shape) for w in layer.weights])
        return layer

    def inputs(self, dtype="float64"):
        return self.normal(B, T, DY, dtype=dtype), self.normal(B, S, DX, dtype=dtype)

    @parameterized.product(score=["product", "additive"], mask=[None, MASK])
    def test_values_and_gradients(self, score, mask):
        layer, (y, x) = self.layer(score), self.inputs()
        weights = [w.numpy() for w in layer.weights]
        expected = reference(y, x, *weights, score, mask)
        mixture = self.normal(B, T, DX, dtype="float64")

        @tf.function
        def run(y, x):
            with tf.GradientTape() as tape:
                tape.watch([y, x])
                found = layer(y, x, source_mask=mask, return_weights=True)
                loss = tf.reduce_sum(mixture * found[0])
            return found, tape.gradient(loss, [y, x, *(w.value for w in layer.trainable_weights)])

        found, gradients = run(tf.constant(y), tf.constant(x))
        self.assertAllClose(found, expected, rtol=1e-10, atol=1e-12)
        slopes = references.gradients(
            lambda *arrays: np.sum(mixture * reference(*arrays, score, mask)[0]), [y, x, *weights], step=1e-6
        )
        for ours, want in zip(gradients, slopes, strict=True):
            self.assertAllClose(ours, want, rtol=1e-5, atol=1e-7)

    @parameterized.parameters("product", "additive")
    def test_a_source_of_padding_alone(self, score):
        layer, (y, x) = self.layer(score), map(tf.constant, self.inputs())
        mask = tf.constant([[True] * S, [False] * S])
        with tf.GradientTape() as tape:
            tape.watch([y, x])
            context, weights = layer(y, x, source_mask=mask, return_weights=True)
            loss = tf.reduce_sum(context**2)
        gradients = tape.gradient(loss, [y, x, *(w.value for w in layer.trainable_weights)])
        self.assertAllEqual(context[1], tf.zeros([T, DX]))
        self.assertAllEqual(weights[1], tf.zeros([T, S]))
        for gradient in gradients:
            self.assertTrue(np.isfinite(gradient).all())

    def test_step_by_step(self):
        for score in ("product", "additive"):
            layer, (y, x) = self.layer(score), self.inputs()
            expected = layer(y, x, source_mask=MASK, return_weights=True)
            keys = layer.keys(tf.constant(x))
            for t in range(T):
                found = layer.attend(tf.constant(y[:, t : t + 1]), keys, tf.constant(x), tf.constant(MASK))
                for ours, want in zip(found, expected, strict=True):
                    self.assertAllClose(ours[:, 0], want[:, t], rtol=1e-12)

    @parameterized.parameters("mixed_bfloat16", "mixed_float16", "float32")
    def test_softmax_is_in_float32(self, policy):
        layer, (y, x) = self.layer(dtype=policy), self.inputs("float32")
        context, weights = layer(y, x, source_mask=MASK, return_weights=True)
        self.assertEqual((context.dtype, weights.dtype), (tf.as_dtype(layer.compute_dtype), tf.float32))
        self.assertAllClose(tf.reduce_sum(weights, -1), tf.ones([B, T]), rtol=1e-6)
        expected = reference(y, x, *(w.numpy() for w in layer.weights), "product", MASK)
        tolerance = 1e-5 if policy == "float32" else 0.15
        self.assertAllClose(tf.cast(context, tf.float32), expected[0], rtol=tolerance, atol=tolerance)

    def test_in_a_functional_model_of_open_shapes(self):
        """Takes the masks that Keras passes on, and is the same when it comes back from its config."""
        queries, source = keras.Input((None, DY)), keras.Input((None, DX))
        attention, masked = Attention(UNITS, "additive", "he_normal"), keras.layers.Masking()(source)
        outputs = attention(queries, masked, return_weights=True)
        self.assertEqual([x.shape for x in outputs], [(None, None, DX), (None, None, None)])
        model = keras.Model([queries, source], list(outputs))
        y, x = self.inputs("float32")
        x[~MASK] = 0
        layer = model.layers[-1]
        self.assertAllClose(model([y, x])[1], layer(y, x, source_mask=MASK, return_weights=True)[1])
        again = keras.Model.from_config(model.get_config())
        again.set_weights(model.get_weights())
        self.assertAllClose(again([y, x]), model([y, x]))

    def test_bad_calls(self):
        y, x = self.inputs("float32")
        for call, pattern in (
            (lambda: Attention(0), "units=0"),
            (lambda: Attention(3, "dot"), "score='dot'"),
            (lambda: Attention(3)(y[0], x), r"queries must be \(batch, time, width\).*\(3, 5\)"),
            (lambda: Attention(3)(y, x.astype("int32")), "inputs of dtype int32"),
            (lambda: Attention(3)(y, x, source_mask=MASK[:, :2]), r"mask \(2, 2\), inputs \(2, 4, 6\)"),
        ):
            with self.assertRaisesRegex(ValueError, pattern):
                call()

    @parameterized.parameters("product", "additive")
    def test_bad_calls_of_a_built_layer(self, score):
        layer, (y, x) = Attention(3, score), self.inputs("float32")
        layer(y, x)
        for arguments, pattern in (
            ((y[0], x), r"queries must be \(batch, time, width\) with width 5.*shape \(3, 5\)"),
            ((y[..., :3], x), r"queries must be .* width 5, as when it was built.*shape \(2, 3, 3\)"),
            ((y, x[..., :3]), r"source must be .* width 6.*shape \(2, 4, 3\)"),
            ((y[:1], x), r"source must have the batch of queries. Received: source \(2, 4, 6\), queries \(1, 3, 5\)"),
        ):
            with self.assertRaisesRegex(ValueError, pattern):
                layer(*arguments)

    def test_one_initializer_makes_different_weights(self):
        for seed in (None, 3):
            layer = Attention(UNITS, kernel_initializer=keras.initializers.RandomNormal(seed=seed))
            layer.build((None, None, DX), (None, None, DX))
            self.assertNotAllClose(layer.source_kernel, layer.query_kernel)
            self.assertNotAllClose(layer.source_kernel[0], layer.scale)
            self.assertNotAllClose(layer.query_kernel[0], layer.scale)
