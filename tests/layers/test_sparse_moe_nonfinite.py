"""Tokens that are no numbers, or huge or tiny ones, among others."""

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tests.layers.test_sparse_moe import ENOUGH, KINDS, every, shuffle_gate
from tf_moe.layers import SparseMoE

BAD = (float("nan"), float("inf"), -float("inf"), 3e38)


def step(layer, x, mask=None, taking_part=None):
    """Output, loss and gradients of a training step; the loss is over some of the tokens."""
    with tf.GradientTape() as tape:
        output = layer(x, mask=mask, training=True)
        task = output if taking_part is None else tf.where(taking_part[..., None], output, 0)
        loss = tf.reduce_sum(tf.cast(task, tf.float32) ** 2) + tf.add_n(layer.losses)
    return output, loss, tape.gradient(loss, layer.trainable_variables)


def trained(x, rng, **arguments):
    """A layer for x whose gate has random weights."""
    layer = SparseMoE(expert_hidden=5, **arguments)
    layer.build(x.shape)
    return shuffle_gate(layer, rng)


def twin_of(layer, x):
    twin = SparseMoE.from_config(layer.get_config())
    twin.build(x.shape)
    twin.set_weights(layer.get_weights())
    return twin


class NonFiniteTest(TestCase):
    @every(seed=1)
    def test_is_to_others_as_if_masked(self, arguments):
        """Outputs, losses, every gradient and the statistics; its own output is NaN, that of a masked one zero."""
        x = self.normal(3, 8, 4)
        layer = trained(x, self.rng, **arguments)
        twin = twin_of(layer, x)
        mask, bad = np.ones((3, 8), bool), np.zeros((3, 8), bool)
        mask[1, 4:] = False
        for n, value in enumerate(BAD):
            bad[n % 3, 2 * n] = True
            x[n % 3, 2 * n, n] = value
        output, loss, gradients = step(layer, x, mask, mask & ~bad)
        expected, expected_loss, expected_gradients = step(twin, np.where(bad[..., None], 0, x), mask & ~bad)

        self.assertAllEqual(np.isnan(output), np.tile((mask & bad)[..., None], 4))
        self.assertAllClose(np.where(bad[..., None], 0, output), expected)
        self.assertAllClose(loss, expected_loss)
        self.assertAllClose(gradients, expected_gradients, rtol=1e-5, atol=1e-5)
        for name, metric in layer.balance_metrics.items():
            if name == "nonfinite_fraction":
                self.assertAllClose(metric.result(), np.sum(mask & bad) / np.sum(mask))
            else:
                self.assertAllClose(metric.result(), twin.balance_metrics[name].result())

    @every()
    def test_is_nothing_to_others_at_evaluation(self, arguments):
        x = self.normal(9, 4)
        layer = trained(x, self.rng, **arguments)
        alone = layer(x)
        x[3, 1] = np.nan
        self.assertAllEqual(np.isnan(layer(x)), np.tile(np.arange(9)[:, None] == 3, (1, 4)))
        self.assertAllClose(np.delete(layer(x), 3, axis=0), np.delete(alone, 3, axis=0))
        routing = layer.route(x)
        self.assertAllEqual(routing.combine_weights[3], np.zeros(routing.combine_weights.shape[1]))
        self.assertTrue(np.all(np.isfinite(routing.importance)) and np.all(np.isfinite(routing.load)))

    @every()
    def test_nothing_but_nan(self, arguments):
        layer = SparseMoE(expert_hidden=5, **arguments)
        output, loss, gradients = step(layer, np.full((3, 4), np.nan, "float32"), taking_part=np.zeros(3, bool))
        self.assertTrue(np.all(np.isnan(output)))
        self.assertAllEqual(loss, 0)
        for gradient in gradients:
            self.assertAllEqual(gradient, np.zeros(gradient.shape))

    @parameterized.parameters(("noisy_top_k", None), ("hierarchical", ENOUGH), ("strictly_balanced", None))
    def test_xla(self, kind, capacity_factor):
        """Each gate once: bad tokens have lost their choices before there is a dispatcher."""
        arguments = {**KINDS[kind], "capacity_factor": capacity_factor}
        x = self.normal(9, 4)
        layer = trained(x, self.rng, **arguments)
        x[3, 1] = np.nan
        self.assertAllClose(tf.function(layer, jit_compile=True)(x), layer(x), rtol=1e-5, atol=1e-5)

    def test_half_precision(self):
        for policy in ("mixed_float16", "mixed_bfloat16"):
            layer = SparseMoE(6, 5, k=2, dtype=policy)
            x = self.normal(9, 4)
            x[3, 1], x[5] = np.inf, 7e4  # the latter is infinite in float16 only
            bad = {3, 5} if policy == "mixed_float16" else {3}
            self.assertAllEqual(np.isnan(layer(x))[:, 0], [n in bad for n in range(9)])

    def test_reported_by_fit(self):
        model = keras.Sequential([SparseMoE(4, 5, k=2, name="moe")])
        model.compile("sgd", "mse")
        x = self.normal(8, 4)
        x[2, 0] = np.nan
        history = model.fit(x, np.zeros_like(x), verbose=0).history
        self.assertAllClose(history["moe/nonfinite_fraction"], [1 / 8])


class HugeAndTinyTest(TestCase):
    @every()
    def test_outputs_and_gradients_are_finite(self, arguments):
        """Features up to 1e30 beside zeros and denormal numbers."""
        x = self.normal(10, 4)
        layer = trained(x, self.rng, **arguments)
        for n, scale in enumerate((0, 1e-45, 1e-30, 1e10, 1e20, 1e30)):
            x[n] *= scale
        with tf.GradientTape() as tape:
            output = layer(x, training=True)
            loss = tf.reduce_sum(tf.where(np.arange(10)[:, None] > 5, output, 0) ** 2) + tf.add_n(layer.losses)
        gradients = tape.gradient(loss, layer.trainable_variables)
        self.assertTrue(np.all(np.isfinite(output)))
        self.assertTrue(np.isfinite(loss))
        for weight, gradient in zip(layer.trainable_variables, gradients, strict=True):
            self.assertTrue(np.all(np.isfinite(gradient)), weight.path)
