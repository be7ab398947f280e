"""The loss against Keras's with one-hot targets."""

import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.models import SmoothedCrossentropy

V = 7


class SmoothedCrossentropyTest(TestCase):
    def test_equals_one_hot_targets(self):
        y, logits, weight = self.rng.integers(0, V, (3, 4)), 3 * self.normal(3, 4, V), self.rng.random((3, 4))
        for share in (0.0, 0.1, 1.0):
            expected = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=share)
            one_hot, ours = np.eye(V)[y].astype("float32"), SmoothedCrossentropy(share)
            for sample_weight in (None, weight):
                self.assertAllClose(ours(y, logits, sample_weight), expected(one_hot, logits, sample_weight), rtol=1e-5)

    def test_targets_of_width_1(self):
        y, logits = self.rng.integers(0, V, (3, 4)), self.normal(3, 4, V)
        self.assertAllClose(SmoothedCrossentropy()(y[..., None], logits), SmoothedCrossentropy()(y, logits))

    def test_mask(self):
        """What is masked counts nothing, also not in the mean's number."""
        y, logits, mask = self.rng.integers(0, V, (3, 4)), self.normal(3, 4, V), self.rng.random((3, 4)) < 0.6
        masked = tf.constant(logits)
        keras.src.backend.set_keras_mask(masked, tf.constant(mask))
        self.assertAllClose(SmoothedCrossentropy(0.2)(y, masked), SmoothedCrossentropy(0.2)(y[mask], logits[mask]))

    def test_half_precision_is_computed_in_float32(self):
        y, logits = self.rng.integers(0, V, (3, 4)), tf.cast(self.normal(3, 4, V), tf.bfloat16)
        found = SmoothedCrossentropy(0.1)(y, logits)
        self.assertEqual(found.dtype, tf.float32)
        self.assertAllClose(found, SmoothedCrossentropy(0.1)(y, tf.cast(logits, tf.float32)))

    def test_config(self):
        loss = SmoothedCrossentropy(0.3, reduction="sum", name="mine")
        again = keras.losses.deserialize(keras.losses.serialize(loss))
        self.assertEqual((again.label_smoothing, again.reduction, again.name), (0.3, "sum", "mine"))

    def test_bad_calls(self):
        with self.assertRaisesRegex(ValueError, "label_smoothing=1.5"):
            SmoothedCrossentropy(1.5)
        with self.assertRaisesRegex(ValueError, r"targets \(3, 4, 7\), predictions \(3, 4, 7\)"):
            SmoothedCrossentropy()(np.zeros((3, 4, V)), np.zeros((3, 4, V)))
