"""The layer with a gate that goes by ids: in models, with masks, saved and exported, and what it says of wrong ids."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.gates import NoisyTopK
from tf_moe.layers import SparseMoE


def layer_of(num_gates=3, **arguments):
    gate = NoisyTopK(4, 2, "glorot_uniform", num_gates=num_gates, seed=1)
    return SparseMoE(4, 5, k=2, gate=gate, name="moe", **arguments)


class GateIdTest(TestCase):
    def layer(self, **arguments):
        layer = layer_of(**arguments)
        layer.build((None, None, 6))
        layer.set_weights([self.normal(*w.shape) for w in layer.get_weights()])
        return layer

    def test_every_position_has_its_gate(self):
        """As if a layer with that gate alone had been called."""
        layer, x, ids = self.layer(), self.normal(3, 5, 6), self.rng.integers(0, 3, (3, 5))
        y = layer(x, gate_id=ids)
        routing = layer.route(x, gate_id=ids)
        for g in range(3):
            alone = SparseMoE(4, 5, k=2)
            alone.build(x.shape)
            alone.set_weights([w[g] if w.shape[0] == 3 else w for w in layer.get_weights()])
            self.assertAllClose(y[ids == g], alone(x[ids == g]), rtol=1e-4, atol=1e-5)
            gates = tf.reshape(routing.gates, [3, 5, 4])
            self.assertAllClose(gates[ids == g], alone.route(x[ids == g]).gates, rtol=1e-4, atol=1e-5)
        self.assertAllClose(layer(x, gate_id=ids[:, 0]), layer(x, gate_id=np.repeat(ids[:, :1], 5, 1)))

    @parameterized.parameters(None, 2.0)
    def test_an_unknown_id_spoils_its_own_position_only(self, capacity_factor):
        layer, x = self.layer(capacity_factor=capacity_factor), self.normal(2, 3, 6)
        ids, mask = np.array([[0, 3, 1], [-1, 2, 7]]), np.array([[1, 1, 1], [1, 1, 0]], bool)
        known = (ids >= 0) & (ids < 3)
        with tf.GradientTape() as tape:
            y = layer(x, mask=mask, gate_id=ids, training=True)
            loss = tf.reduce_sum(tf.where(tf.math.is_nan(y), 0.0, y)) + tf.add_n(layer.losses)
        self.assertAllEqual(tf.math.is_nan(y)[..., 0], mask & ~known)
        self.assertAllEqual(y[1, 2], np.zeros(6))  # an id that is only padding may be any
        self.assertAllEqual(np.isfinite(loss), True)
        self.assertTrue(all(np.all(np.isfinite(g)) for g in tape.gradient(loss, layer.trainable_variables)))
        self.assertAllClose(layer.balance_metrics["nonfinite_fraction"].result(), 2 / 5)
        y = layer(x, mask=mask, gate_id=ids)
        self.assertAllClose(y[known], layer(x[known], gate_id=ids[known]), rtol=1e-4, atol=1e-5)

    def test_functional_model(self):
        """It is fitted, under XLA too, with the mask of the embedding, and is loaded as it was."""
        words, task = keras.Input((None,), dtype="int32"), keras.Input((), dtype="int32")
        embedding, moe = keras.layers.Embedding(5, 6, mask_zero=True), layer_of(capacity_factor=2.0, activation="tanh")
        model = keras.Model([words, task], moe(embedding(words), gate_id=task))
        model.compile("adam", "mse", jit_compile=True)
        batch, tasks = self.rng.integers(0, 5, (6, 5)).astype("int32"), self.rng.integers(0, 3, 6).astype("int32")
        before = [w.numpy() for w in moe.gate.weights]
        model.fit([batch, tasks], self.normal(6, 5, 6), verbose=0)
        for weight, value in zip(moe.gate.weights, before, strict=True):
            self.assertNotAllClose(weight, value)

        mask = batch != 0
        for y in (moe(embedding(batch), gate_id=tasks), model([batch, tasks])):
            self.assertAllEqual(y._keras_mask, mask)
            self.assertAllEqual(tf.reduce_any(y != 0, axis=-1), mask)
            self.assertAllEqual(y, moe(embedding(batch), mask=mask, gate_id=tasks))

        path = Path(self.get_temp_dir(), "model.keras")
        model.save(path)
        self.assertAllEqual(keras.models.load_model(path)([batch, tasks]), y)

    def test_errors_in_calls_and_while_a_model_is_made(self):
        several, one = layer_of(), SparseMoE(4, 5, k=2)
        missing = "NoisyTopK with num_gates=3 must be told .*Received: gate_id=None. Pass gate_id="
        unwanted = r"NoisyTopK takes no gate_id. Received: gate_id=.*num_gates=\.\.\."
        for x, ids, floats, long in (
            (self.normal(2, 6), np.zeros(2, int), np.zeros(2, "float32"), np.zeros(3, int)),
            (keras.Input((6,)), keras.Input((), dtype="int32"), keras.Input(()), keras.Input((6,), dtype="int32")),
        ):
            for layer, options, pattern in (
                (several, {}, missing),
                (one, {"gate_id": ids}, unwanted),
                (several, {"gate_id": floats}, "gate_id must be of integers. Received: gate_id of dtype float32"),
                (several, {"gate_id": long}, r"gate_id must have the shape of .*Received: gate_id \("),
            ):
                with self.assertRaisesRegex(ValueError, pattern):
                    layer(x, **options)
        with self.assertRaisesRegex(ValueError, missing):
            several.route(self.normal(2, 6))
        with self.assertRaisesRegex(ValueError, unwanted):
            one.route(self.normal(2, 6), gate_id=[0, 1])
