"""The layer compiled by XLA, on a DTensor mesh, and in the hands of another process."""

import pathlib
import tempfile
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.experimental import dtensor

from tests.base import TestCase
from tests.mesh.helpers import strategy_on
from tests.processes import run_python
from tf_moe.layers.lstm import LSTM
from tf_moe.recurrence.buffers import StaticBuffers, buffers_for
from tf_moe.recurrence.lstm_gates import lstm_gates_for
from tf_moe.recurrence.scan import lstm_scan

B, T, D, UNITS = 4, 6, 3, 5


def scan(x, h, c, kernel, recurrent, projection, mask):
    """Outputs and gradients of the layer's recurrence, with buffers of static shape as on a mesh."""
    gates = lstm_gates_for(keras.activations.tanh, keras.activations.sigmoid)
    arguments = [x, h, c, kernel, recurrent, projection]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        z = tf.einsum("tbd,dk->tbk", x, kernel)
        hs, h, c = lstm_scan(z, recurrent, h, c, projection, gates=gates, mask=mask, buffers=StaticBuffers)
        loss = tf.reduce_sum(hs**2) + tf.reduce_sum(h * 3) + tf.reduce_sum(c)
    return [hs, h, c], tape.gradient(loss, arguments)


class LstmPlatformsTest(TestCase):
    def test_xla(self):
        some = tf.constant(self.rng.random((B, T)) < 0.6)
        for mask, options in ((None, {}), (some, {"projection": 2, "go_backwards": True})):
            layer = LSTM(UNITS, return_sequences=True, return_state=True, use_cudnn=False, **options)
            layer.build((B, T, D))
            inputs = tf.constant(self.normal(B, T, D))

            def step(inputs, layer=layer, mask=mask):
                with tf.GradientTape() as tape:
                    outputs = layer(inputs, mask=mask, training=True)
                    loss = tf.add_n([tf.reduce_sum(x**2) for x in outputs])
                return outputs, tape.gradient(loss, [w.value for w in layer.trainable_weights])

            with self.subTest(masked=mask is not None, **options):
                self.assertAllClose(tf.function(step, jit_compile=True)(inputs), step(inputs), rtol=1e-5, atol=1e-5)

    def test_fit_under_xla(self):
        layer = LSTM(UNITS, projection=2, use_cudnn=False)
        self.assertTrue(layer.supports_jit)
        model = keras.Sequential([keras.Input((T, D)), layer])
        model.compile("adam", "mse", jit_compile=True)
        history = model.fit(self.normal(4, T, D), np.zeros((4, 2)), epochs=2, batch_size=4, verbose=0)
        self.assertTrue(np.isfinite(history.history["loss"]).all())

    def test_a_mesh_of_two_devices(self):
        mesh = strategy_on(2).mesh

        def whole(x):
            return dtensor.relayout(x, dtensor.Layout.replicated(mesh, x.shape.rank)).numpy()

        def place(array, axis):
            layout = dtensor.Layout([("expert" if n == axis else dtensor.UNSHARDED) for n in range(array.ndim)], mesh)
            replicated = dtensor.Layout.replicated(mesh, array.ndim)
            return dtensor.relayout(dtensor.copy_to_mesh(tf.constant(array), replicated), layout)

        shapes = [(T, B, D), (B, 2), (B, UNITS), (D, 4 * UNITS), (2, 4 * UNITS), (UNITS, 2)]
        arrays, mask = [self.normal(*shape) for shape in shapes], self.rng.random((T, B)) < 0.7
        expected = tf.nest.flatten(scan(*map(tf.constant, arrays), tf.constant(mask)))
        for jit in (False, True):
            with self.subTest(jit=jit):
                placed = map(place, arrays, [1, 0, 0, None, None, None])
                found = tf.nest.flatten(tf.function(scan, jit_compile=jit)(*placed, place(mask, 1)))
                for ours, value in zip(found, expected, strict=True):
                    self.assertAllClose(whole(ours), value, rtol=1e-5, atol=1e-5)
                self.assertEqual(dtensor.fetch_layout(found[0]).sharding_specs[1], "expert")
        zeros = dtensor.copy_to_mesh(tf.zeros([2]), dtensor.Layout.replicated(mesh, 1))
        self.assertIs(buffers_for(dtensor.DVariable(zeros)), StaticBuffers)

    @pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras to h5py
    def test_a_fresh_process_loads_what_was_saved_and_exported(self):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        model = keras.Sequential(
            [
                keras.Input((None, D)),
                keras.layers.Masking(),
                LSTM(UNITS, projection=2, return_sequences=True, recurrent_dropout=0.1),
                keras.layers.Bidirectional(LSTM(UNITS)),
            ]
        )
        inputs = self.normal(B, T, D)
        inputs[1, 4:] = 0.0
        expected = model(inputs).numpy()
        model.save(folder / "model.keras")
        model.export(folder / "exported", verbose=False)
        np.save(folder / "inputs.npy", inputs)
        np.save(folder / "expected.npy", expected)
        script = """
            import pathlib, sys
            import keras, numpy as np, tensorflow as tf
            folder = pathlib.Path(sys.argv[1])
            inputs, expected = np.load(folder / "inputs.npy"), np.load(folder / "expected.npy")
            exported = tf.saved_model.load(str(folder / "exported"))  # without our code
            np.testing.assert_allclose(exported.serve(inputs), expected, rtol=1e-5, atol=1e-5)
            import tf_moe.layers.lstm
            model = keras.models.load_model(folder / "model.keras")
            np.testing.assert_allclose(model(inputs), expected, rtol=1e-5, atol=1e-5)
            print("passed")
        """
        self.assertIn("passed", run_python("-c", textwrap.dedent(script), folder).stdout)
