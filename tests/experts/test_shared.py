import itertools

import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.experts import FeedForward
from tf_moe.experts.shared import make_shared_expert

UNITS, WIDTH = 64, 3


class SharedExpertTest(TestCase):
    def make(self, **changes):
        settings = {
            "activation": "relu", "use_bias": True, "dropout": 0.0, "seed": 1, "kernel_initializer": "glorot_uniform",
            "kernel_regularizer": None, "kernel_constraint": None, "dtype": "float32",
        }  # fmt: skip
        return make_shared_expert(UNITS, WIDTH, **{**settings, **changes})

    def test_values(self):
        expert, x = self.make(), self.normal(5, WIDTH)
        for weight in expert.weights:
            weight.assign(self.normal(*weight.shape))
        hidden, hidden_bias, output, output_bias = (w.numpy().astype("float64") for w in expert.weights)
        expected = np.maximum(x @ hidden + hidden_bias, 0) @ output + output_bias
        self.assertAllClose(expert(x), expected, rtol=1e-4, atol=1e-4)
        self.assertEqual([w.shape for w in self.make(use_bias=False).weights], [(WIDTH, UNITS), (UNITS, WIDTH)])

    def test_units_are_dropped_in_training_of_each_token_others(self):
        expert, x = self.make(dropout=0.5), np.ones((2, WIDTH), "float32")
        for weight, value in zip(expert.weights, (1, 0, 1, 0), strict=True):
            weight.assign(np.full(weight.shape, value))
        self.assertAllClose(expert(x), np.full((2, WIDTH), UNITS * WIDTH))
        first, second = expert(x, training=True).numpy()[:, 0] / (2 * WIDTH)  # each unit that stays counts twice
        self.assertBetween(first, 1, UNITS - 1)
        self.assertAllClose(first, round(first))
        hidden = keras.Sequential(expert.layers[:2])(x, training=True).numpy()
        self.assertNotAllEqual(hidden[0], hidden[1])
        self.assertBetween(second, 1, UNITS - 1)

    def test_gradient_of_biases_in_half_precision(self):
        expert = self.make(activation="linear", dtype="mixed_bfloat16")
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.cast(expert(tf.ones([4096, WIDTH])), "float32"))
        self.assertAllEqual(tape.gradient(loss, expert.layers[2].bias.value), [4096.0] * WIDTH)

    def test_each_kernel_has_its_own_settings(self):
        """Regularizer and constraint are of both; an initializer without a seed gives them different numbers."""
        initializer = keras.initializers.RandomNormal()
        expert = self.make(
            kernel_initializer=initializer,
            kernel_regularizer=keras.regularizers.L2(0.1),
            kernel_constraint=keras.constraints.NonNeg(),
            dtype="mixed_bfloat16",
        )
        hidden, output = expert.layers[0].kernel, expert.layers[2].kernel
        self.assertNotAllClose(np.ravel(hidden), np.ravel(output))
        # As many numbers each, and a seed: those of the stacked kernels' first expert differ too.
        initializer = keras.initializers.RandomNormal(seed=3)
        bank = FeedForward(2, UNITS, kernel_initializer=initializer)
        bank.build((None, WIDTH))
        kernels = [bank.hidden_kernel[0], bank.output_kernel[0]]
        kernels += [layer.kernel for layer in self.make(kernel_initializer=initializer).layers[::2]]
        for one, other in itertools.combinations(map(np.ravel, kernels), 2):
            self.assertNotAllClose(one, other)
        self.assertLen(expert.losses, 2)
        self.assertAllEqual([type(k.constraint) for k in (hidden, output)], [keras.constraints.NonNeg] * 2)
        self.assertEqual(expert(self.normal(4, WIDTH)).dtype, "bfloat16")
