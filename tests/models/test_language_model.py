import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.layers import SparseMoE
from tf_moe.models import Perplexity, dense_twin, language_model


class LanguageModelTest(TestCase):
    def test_any_batch_and_time(self):
        model = language_model(11, [SparseMoE(4, 5, k=2)], width=6)
        for shape in ((1, 1), (3, 4)):
            self.assertEqual(model(self.rng.integers(0, 11, shape)).shape, (*shape, 11))

    def test_is_causal_and_honours_padding(self):
        model = language_model(11, [SparseMoE(4, 5, k=2, output_activation="sigmoid")], width=6)
        x = self.rng.integers(1, 11, (2, 6))
        other = x.copy()
        other[:, 4:] = 0
        self.assertAllClose(model(x)[:, :4], model(other)[:, :4], atol=1e-5)

    def test_residuals_around_every_layer_but_the_embedding(self):
        """With all layers silenced, the embedding itself reaches the softmax."""
        moe = SparseMoE(4, 5, k=2)
        model = language_model(11, [moe], width=6)
        for name in ("lstm_1", "lstm_2"):
            layer = model.get_layer(name)
            layer.set_weights([np.zeros_like(w) for w in layer.get_weights()])
        moe.experts.set_weights([np.zeros_like(w) for w in moe.experts.get_weights()])
        x = self.rng.integers(1, 11, (2, 6))
        expected = model.get_layer("softmax")(model.get_layer("embedding")(x))
        self.assertAllClose(model(x), expected, atol=1e-5)

    def test_logits_are_float32_under_mixed_precision(self):
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            model = language_model(11, [SparseMoE(4, 5, k=2)], width=6)
        finally:
            keras.config.set_dtype_policy("float32")
        self.assertEqual(model(self.rng.integers(0, 11, (2, 3))).dtype, tf.float32)

    def test_learns_a_rule(self):
        """Each token follows from the one before, so perplexity comes near 1."""
        x = (self.rng.integers(0, 9, (64, 1)) + np.arange(8)) % 9 + 1
        model = language_model(10, [SparseMoE(4, 16, k=2, output_activation="sigmoid")], width=16, dropout=0.0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.02), loss, weighted_metrics=[Perplexity()])
        history = model.fit(x[:, :-1], x[:, 1:], epochs=25, verbose=0).history["perplexity"]
        self.assertLess(history[-1], 1.5)
        self.assertGreater(history[0], 4)

    def test_a_twin_beside_dense_layers(self):
        """Whose names Keras counts from "dense" on."""
        inputs = keras.Input((None, 4))
        twin = dense_twin(SparseMoE(2, 3, k=1), 4)
        model = keras.Model(inputs, keras.layers.Dense(2)(twin(keras.layers.Dense(4)(inputs))))
        self.assertEqual(model.output_shape, (None, None, 2))

    def test_no_twin_of_unknown_experts(self):
        with self.assertRaisesRegex(ValueError, "expert="):
            dense_twin(SparseMoE(2, k=1, expert=lambda: keras.layers.Dense(4)), 4)


class PerplexityTest(TestCase):
    def test_is_exact_over_weighted_tokens(self):
        logits = self.normal(3, 4, 7)
        targets = self.rng.integers(0, 7, (3, 4))
        weights = self.rng.integers(0, 2, (3, 4)).astype("float32")
        weights[0, 0] = 1
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        chosen = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
        metric = Perplexity()
        for rows in (slice(0, 2), slice(2, 3)):  # batches of different size
            metric.update_state(targets[rows], logits[rows], weights[rows])
        self.assertAllClose(metric.result(), np.exp(-(chosen * weights).sum() / weights.sum()), rtol=1e-5)

    def test_uniform_is_the_number_of_tokens(self):
        metric = Perplexity()
        metric.update_state([3], tf.zeros([1, 50]))
        self.assertAllClose(metric.result(), 50.0, rtol=1e-5)

    def test_config_round_trip(self):
        metric = Perplexity.from_config(Perplexity(name="p").get_config())
        metric.update_state([0], [[0.0, 0.0]])
        self.assertEqual(metric.name, "p")
        self.assertAllClose(metric.result(), 2.0, rtol=1e-5)
