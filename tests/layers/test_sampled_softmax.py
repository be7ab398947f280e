import pathlib

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tests.mesh.helpers import strategy_on
from tf_moe.layers import LSTM, SampledSoftmax, SampledSoftmaxLoss

V, D = 40, 6


def softmax_loss(targets, inputs, kernel, bias):
    """In float64, over the whole vocabulary."""
    logits = inputs.astype("float64") @ kernel.T.astype("float64") + bias
    return np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]


class SampledSoftmaxTest(TestCase):
    def layer(self, **arguments):
        layer = SampledSoftmax(V, seed=int(self.rng.integers(2**31)), **arguments)
        layer.build((None, D))
        layer.set_weights([0.5 * self.normal(V, D), self.normal(V), *layer.get_weights()[2:]])
        return layer

    def test_evaluation_is_exact(self):
        layer = self.layer(num_sampled=3)
        x, targets = self.normal(4, 5, D), self.rng.integers(0, V, (4, 5))
        kernel, bias = layer.kernel.numpy(), layer.bias.numpy()
        logits = layer(x)
        self.assertAllClose(logits, x @ kernel.T + bias, rtol=1e-4, atol=1e-5)
        loss = SampledSoftmaxLoss(reduction=None)(targets, logits)
        self.assertAllClose(loss, softmax_loss(targets, x, kernel, bias), rtol=1e-4)

    @parameterized.parameters("log_uniform", "uniform")
    def test_training_estimates_it(self, sampling):
        """The more is drawn the nearer, in value and gradient."""
        layer = self.layer(num_sampled=100_000, sampling=sampling)
        x, targets = self.normal(12, D), self.rng.integers(0, V, 12)
        loss = SampledSoftmaxLoss(reduction="sum")
        weights = [layer.kernel, layer.bias]
        gradients = []
        for training in (True, False):
            with tf.GradientTape() as tape:
                inputs = tf.constant(x)
                tape.watch(inputs)
                value = loss(targets, layer(inputs, training=training))
            gradients.append(
                [value, *map(tf.convert_to_tensor, tape.gradient(value, [inputs, *(w.value for w in weights)]))]
            )
        for sampled, full in zip(*gradients, strict=True):
            scale = np.abs(full).max()
            self.assertAllClose(sampled / scale, full / scale, atol=0.2)  # of the rarest, seven deviations

    @parameterized.parameters("log_uniform", "uniform")
    def test_words_come_as_often_as_expected(self, sampling):
        layer = self.layer(num_sampled=200_000, sampling=sampling)
        words = layer._draw()
        self.assertBetween(int(tf.reduce_min(words)), 0, V - 1)
        counts = np.bincount(words, minlength=V)
        expected = np.exp(layer._log_expected(tf.range(V)))
        self.assertAllClose(expected.sum(), 200_000, rtol=1e-4)
        self.assertAllLess(np.abs(counts - expected) / np.sqrt(expected), 6)
        self.assertNotAllEqual(words, layer._draw())

    def test_every_word_of_a_very_large_vocabulary_may_come(self):
        """There are 2^23 float32 numbers between 0 and 1, as `uniform` draws them."""
        layer = SampledSoftmax(2**25, num_sampled=10_000, sampling="uniform")
        self.assertAllClose(np.bincount(layer._draw() % 4, minlength=4) / 10_000, np.full(4, 0.25), atol=0.05)
        # By rank 8600 of these are expected among the last 5 million words, of which some 7 for the second time.
        layer = SampledSoftmax(10_000_000, num_sampled=200_000)
        words = layer._draw().numpy()
        last = words[words >= 5_000_000]
        self.assertBetween(len(last), 8000, 9200)
        self.assertLess(len(last) - len(np.unique(last)), 35)

    def test_a_seed_draws_the_words_that_float32_numbers_do(self):
        """The digits beyond float32's change a word only where two meet: samples of earlier releases come again."""
        layer = SampledSoftmax(1000, num_sampled=500, sampling="uniform", seed=7)
        state = tf.cast(layer.seed_generator.state, tf.int32)
        words = tf.cast(tf.random.stateless_uniform([500], state) * 1000, tf.int32)
        self.assertAllEqual(layer._draw(), words)

    def test_targets_in_the_sample_count_once(self):
        """One word besides the target: were hits counted, the loss would be far from zero."""
        layer = SampledSoftmax(2, num_sampled=50, sampling="uniform")
        layer.build((None, 1))
        layer.set_weights([np.zeros((2, 1)), np.array([10.0, 0.0]), *layer.get_weights()[2:]])
        loss = SampledSoftmaxLoss()(np.array([0]), layer(np.ones((1, 1)), training=True))
        self.assertLess(loss, 1e-3)

    def make_model(self, **optimizer):
        softmax = SampledSoftmax(V, num_sampled=16, seed=3)
        model = keras.Sequential(
            [keras.Input((None,), dtype="int32"), keras.layers.Embedding(V, D, mask_zero=True),
             LSTM(8, return_sequences=True), softmax]
        )  # fmt: skip
        model.compile(keras.optimizers.Adam(0.02, **optimizer), SampledSoftmaxLoss())
        return model

    def test_fit_learns_and_is_saved(self):
        x = self.rng.integers(1, V, (64, 6)).astype("int32")
        x[::3, 4:] = 0
        y = np.roll(x, 1, axis=1)
        model = self.make_model()
        before = model.evaluate(x, y, verbose=0)
        model.fit(np.tile(x, (60, 1)), np.tile(y, (60, 1)), batch_size=32, shuffle=False, verbose=0)
        after = model.evaluate(x, y, verbose=0)
        self.assertLess(after, 0.75 * before)

        # Masked steps are left out, as for any loss of Keras.
        mask = x != 0
        logits = model.predict(x, verbose=0)
        self.assertEqual(logits.shape, (64, 6, V))
        losses = softmax_loss(y, logits, np.eye(V), np.zeros(V))
        self.assertAllClose(after, losses[mask].mean(), rtol=1e-4)

        path = pathlib.Path(self.get_temp_dir(), "model.keras")
        model.save(path)
        again = keras.models.load_model(path)
        self.assertAllClose(again.evaluate(x, y, verbose=0), after, rtol=1e-5)
        again.fit(x, y, verbose=0)

    def test_mixed_precision(self):
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            model = self.make_model()
        finally:
            keras.config.set_dtype_policy("float32")
        x = self.rng.integers(1, V, (8, 5)).astype("int32")
        self.assertTrue(np.isfinite(model.fit(x, x, verbose=0).history["loss"][0]))
        self.assertDTypeEqual(model.predict(x, verbose=0), np.float32)

    @parameterized.parameters("bfloat16", "float16", "float64", "mixed_bfloat16")
    def test_a_dtype_of_its_own(self, dtype):
        """The loss is float32, as Keras's are, and that of the same weights in a float32 layer."""
        x, targets = tf.cast(self.normal(5, D), "bfloat16"), self.rng.integers(0, V, 5)
        layers = [SampledSoftmax(V, num_sampled=30, seed=5, dtype=each) for each in (dtype, "float32")]
        values, gradients = [], []
        for layer in layers:
            layer.build((None, D))
            layer.set_weights(layers[0].get_weights())
            with tf.GradientTape() as tape:
                values.append(SampledSoftmaxLoss()(targets, layer(tf.cast(x, layer.compute_dtype), training=True)))
            gradients.append(tf.convert_to_tensor(tape.gradient(values[-1], layer.kernel.value)))
        self.assertDTypeEqual(values[0], np.float32)
        self.assertAllClose(*values, rtol=1e-5)
        self.assertEqual(gradients[0].dtype, layers[0].kernel.dtype)
        self.assertAllClose(tf.cast(gradients[0], "float32"), gradients[1], rtol=0.05, atol=0.01)

    def test_words_are_told_apart_under_a_small_default_dtype(self):
        layer = SampledSoftmax(600, num_sampled=5)
        x, targets = self.normal(3, 2), np.array([257, 511, 599])
        expected = SampledSoftmaxLoss()(targets, layer(x))
        self.addCleanup(keras.config.set_floatx, "float32")
        keras.config.set_floatx("bfloat16")
        self.assertAllClose(SampledSoftmaxLoss()(targets, layer(x)), expected)

    def test_on_a_mesh(self):
        one = self.make_model(epsilon=1e-4)  # or rounding errors make full steps
        with strategy_on(2).scope():
            many = self.make_model(epsilon=1e-4)
        many.set_weights(one.get_weights())
        x = self.rng.integers(1, V, (8, 5)).astype("int32")
        for _ in range(2):
            self.assertAllClose(many.train_on_batch(x, x), one.train_on_batch(x, x), rtol=1e-5)
        self.assertAllClose(many.test_on_batch(x, x), one.test_on_batch(x, x), rtol=1e-5)
        for ours, expected in zip(many.get_weights(), one.get_weights(), strict=True):
            self.assertAllClose(ours, expected, rtol=1e-4, atol=1e-5)

    def test_something_between_layer_and_loss(self):
        """A softmax over the layer's input would be learned, and none of its weights."""
        x = self.rng.integers(1, V, (8, 5)).astype("int32")

        def fit(*ends, **arguments):
            model = keras.Sequential([keras.Input((5,), dtype="int32"), keras.layers.Embedding(V, V + 3), *ends])
            model.compile("sgd", SampledSoftmaxLoss(), **arguments)
            model.fit(x, x, verbose=0)
            return model

        softmax = SampledSoftmax(V, num_sampled=4, name="vocabulary")
        for arguments in ({}, {"run_eagerly": True}):
            for ends in ([keras.layers.TimeDistributed(softmax)], [softmax, keras.layers.Rescaling(1.0)]):
                with self.assertRaisesRegex(ValueError, "must be the model's last.*of the output of 'vocabulary'"):
                    fit(*ends, **arguments)
        model = fit(keras.Sequential([softmax]))
        features = model(x, training=True)  # which no loss gets
        self.assertEqual(features.shape[-1], V + 3)
        self.assertAllClose(SampledSoftmaxLoss()(x, model.predict(x, verbose=0)), model.evaluate(x, x, verbose=0))

    def test_what_cannot_be(self):
        for arguments, message in (
            ({"vocabulary_size": 0}, "vocabulary_size=0"),
            ({"vocabulary_size": 5, "num_sampled": 1.5}, "num_sampled=1.5"),
            ({"vocabulary_size": 5, "sampling": "zipf"}, "sampling='zipf'"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                SampledSoftmax(**arguments)
