"""Perplexity over batches of unequal size, by hand."""

import functools

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tests.mesh.helpers import strategy_on
from tf_moe.layers import SampledSoftmax, SampledSoftmaxLoss
from tf_moe.models import Perplexity, SmoothedCrossentropy
from tf_moe.ops.masks import attach_mask


class PerplexityTest(TestCase):
    def batches(self, weights_of):
        """Batches (targets, logits, weights) that differ in length, and the perplexity of all their tokens."""
        batches, weighted, total = [], 0, 0
        for rows, time in ((3, 4), (1, 7)):
            logits, targets = self.normal(rows, time, 6), self.rng.integers(0, 6, (rows, time))
            weights = weights_of(rows, time)
            log_probability = logits - np.log(np.exp(logits.astype("float64")).sum(-1, keepdims=True))
            chosen = np.take_along_axis(log_probability, targets[..., None], -1)[..., 0]
            weighted += np.sum(chosen if weights is None else chosen * weights.reshape(rows, -1))
            total += chosen.size if weights is None else np.broadcast_to(weights.reshape(rows, -1), chosen.shape).sum()
            batches.append((targets, logits, weights))
        return batches, np.exp(-weighted / total)

    @parameterized.named_parameters(
        ("no", lambda self, rows, time: None),
        ("padding", lambda self, rows, time: (self.rng.random((rows, time)) < 0.7).astype("float32")),
        ("of_rows", lambda self, rows, time: self.rng.random(rows)),
    )
    def test_weights(self, weights_of):
        """The perplexity of all tokens, not a mean of the batches'; in graphs of unknown shapes too."""
        batches, expected = self.batches(functools.partial(weights_of, self))
        for in_graph in (False, True):
            metric = Perplexity()
            update = metric.update_state
            if in_graph:
                shapes = [tf.TensorSpec([None, None], tf.int64), tf.TensorSpec([None, None, 6])]
                weights = batches[0][2]
                shapes += [] if weights is None else [tf.TensorSpec([None] * weights.ndim)]
                update = tf.function(metric.update_state, shapes)
            for batch in batches:
                update(*(tf.cast(x, tf.int64 if x is batch[0] else tf.float32) for x in batch if x is not None))
            self.assertAllClose(metric.result(), expected, rtol=1e-5)

    def test_targets_of_any_rank(self):
        """Sentences of documents, and classes: each target counts once, in batches of any size."""
        for shapes in (((2, 3, 4), (1, 2, 5)), ((5,), (2,))):
            metrics = Perplexity(), Perplexity()
            sizes = [None] * len(shapes[0])
            update = tf.function(metrics[1].update_state, [tf.TensorSpec(sizes, tf.int64), tf.TensorSpec([*sizes, 6])])
            losses = []
            for shape in shapes:
                targets, logits = self.rng.integers(0, 6, shape), self.normal(*shape, 6)
                chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0].astype("float64")
                losses += np.ravel(np.log(np.exp(logits.astype("float64")).sum(-1)) - chosen).tolist()
                metrics[0].update_state(targets, logits)
                update(tf.constant(targets), tf.constant(logits))
            for metric in metrics:
                self.assertAllClose(metric.result(), np.exp(np.mean(losses)), rtol=1e-5)

    def test_on_a_mesh(self):
        weights_of = functools.partial(self.rng.choice, [0.0, 1.0])
        batches, expected = self.batches(lambda rows, time: weights_of((rows, time)))
        with strategy_on(2).scope():
            model = keras.Sequential([keras.Input((None, 6)), keras.layers.Activation("linear")])
            model.compile(loss=SmoothedCrossentropy(), weighted_metrics=[Perplexity()])
        data = tf.data.Dataset.from_generator(
            lambda: ((logits, targets, weights) for targets, logits, weights in batches),
            output_signature=tuple(
                tf.TensorSpec([None] * rank, d) for rank, d in ((3, "float32"), (2, "int64"), (2, "float32"))
            ),
        )
        found = model.evaluate(data.apply(tf.data.experimental.assert_cardinality(2)), verbose=0, return_dict=True)
        self.assertAllClose(found["perplexity"], expected, rtol=1e-5)

    def test_probabilities(self):
        metric = Perplexity(from_logits=False)
        metric.update_state([0, 1], [[0.5, 0.5], [0.875, 0.125]])
        self.assertAllClose(metric.result(), 4)  # of a half and an eighth

    def test_of_nothing(self):
        metric = Perplexity()
        for weights in ([0.0, 0.0], [1.0, 0.0]):
            self.assertTrue(np.isnan(metric.result()))
            metric.update_state([0, 1], [[0.0, 0.0], [0.0, 0.0]], weights)
        self.assertAllClose(metric.result(), 2)

    def test_half_precision_is_computed_in_float32(self):
        targets, logits = self.rng.integers(0, 5000, (4, 50)), tf.cast(2 * self.normal(4, 50, 5000), tf.bfloat16)
        metrics = Perplexity(), Perplexity()
        for metric, dtype in zip(metrics, (tf.bfloat16, tf.float32), strict=True):
            metric.update_state(targets, tf.cast(logits, dtype))
        self.assertAllClose(metrics[0].result(), metrics[1].result(), rtol=1e-5)

    @parameterized.parameters("float16", "bfloat16", "float32", "float64")
    def test_a_mask_of_the_predictions_counts(self, dtype):
        """As it comes to a metric in a model whose embedding masks padding."""
        targets, mask = self.rng.integers(0, 6, (3, 4)), self.rng.random((3, 4)) < 0.5
        mask[0, 0] = True
        logits = tf.cast(20 * self.normal(3, 4, 6), dtype)
        expected = Perplexity()
        expected.update_state(targets[mask], tf.cast(logits, "float64")[mask])
        for weights in (None, np.ones((3, 4))):
            metric, masked = Perplexity(), tf.identity(logits)
            attach_mask(masked, tf.constant(mask))
            metric.update_state(targets, masked, weights)
            self.assertAllClose(metric.result(), expected.result(), rtol=1e-4)

    def test_sampled_softmax(self):
        """In training that of the loss, at evaluation that of all logits; both without padding."""
        model = keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                keras.layers.Embedding(30, 4, mask_zero=True),
                SampledSoftmax(30, num_sampled=8, kernel_initializer="normal"),
            ]
        )
        model.compile("sgd", SampledSoftmaxLoss(), weighted_metrics=[Perplexity()])
        x, y = self.rng.integers(1, 30, (2, 4, 5))
        found = model.fit(x, y, epochs=2, verbose=0).history
        self.assertAllClose(np.log(found["perplexity"]), found["loss"], rtol=1e-5)
        x[0, 2:] = 0
        mask = x != 0
        expected = Perplexity()
        expected.update_state(y[mask], tf.boolean_mask(model(x), mask))
        found = model.evaluate(x, y, verbose=0, return_dict=True)
        self.assertAllClose(found["perplexity"], expected.result(), rtol=1e-5)
        model.layers[-1].num_sampled = 30_000  # so that the estimate is close
        model.compile("sgd", SampledSoftmaxLoss(), weighted_metrics=[Perplexity()], run_eagerly=True)
        self.assertAllClose(model.train_on_batch(x, y, return_dict=True)["perplexity"], expected.result(), rtol=0.03)

    def test_config(self):
        metric = Perplexity("of_words", from_logits=False)
        again = keras.metrics.deserialize(keras.metrics.serialize(metric))
        self.assertIsInstance(again, Perplexity)
        self.assertEqual((again.name, again.from_logits), ("of_words", False))
