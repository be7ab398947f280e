import pathlib

import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.analysis import count
from tf_moe.layers import SparseMoE


class SparseMoEQuantizedTest(TestCase):
    """Keras's `quantize`, on models with the layer inside."""

    def model(self, **kwargs):
        """Ids -> logits, with biases and a shared expert, all weights random."""
        kwargs = {"num_experts": 4, "expert_hidden": 6, "k": 2, "use_bias": True, "shared_expert_hidden": 5, **kwargs}
        ids = keras.Input((None,), dtype="int32")
        embedded = keras.layers.Embedding(12, 8, mask_zero=True, name="embedding")(ids)
        model = keras.Model(ids, keras.layers.Dense(12, name="logits")(SparseMoE(**kwargs, name="moe")(embedded)))
        for weight in model.weights:
            weight.assign(self.normal(*weight.shape) / 2)
        return model

    def ids(self, *shape):
        return self.rng.integers(0, 12, shape)  # id 0 is masked

    def with_rounded_experts(self, model, **kwargs):
        """A model in floats whose experts have the values that the quantized ones stand for."""
        floats = self.model(**kwargs)
        values = {w.path: w.numpy() for w in model.weights}
        for weight in floats.weights:
            value = values[weight.path]
            if value.dtype == np.int8:
                value = value / values[f"{weight.path}_scale"][:, None]
            weight.assign(value)
        return floats

    def test_experts_alone(self):
        """With masks, in unknown batch and time: as floats of the same values, for every gate and dispatcher."""
        for kwargs in (
            {},
            {"capacity_factor": 1.0, "output_activation": "sigmoid"},
            {"num_experts": (2, 3), "k": (2, 1)},
            {"gate": "strictly_balanced"},
        ):
            with self.subTest(str(kwargs)):
                model = self.model(**kwargs)
                counts = count(model)
                model.quantize("int8", filters="experts")
                quantized = {w.path for w in model.weights if w.dtype == "int8"}
                self.assertEqual(quantized, {"moe/experts/hidden_kernel", "moe/experts/output_kernel"})
                self.assertEqual(count(model), counts)
                floats = self.with_rounded_experts(model, **kwargs)
                any_shape = tf.function(model, [tf.TensorSpec([None, None], tf.int32)])
                run = (
                    model if "gate" in kwargs or "k" in kwargs else any_shape
                )  # two are traced, one for each dispatcher
                for shape in ((3, 5), (1, 1)):
                    ids = tf.constant(self.ids(*shape), tf.int32)
                    self.assertAllClose(run(ids), floats(ids), rtol=1e-4, atol=1e-4)
                if not kwargs:
                    compiled = tf.function(model, jit_compile=True)
                    self.assertAllClose(compiled(ids), floats(ids), rtol=1e-4, atol=1e-4)

    def test_whole_model_in_every_form(self):
        folder, ids = pathlib.Path(self.get_temp_dir()), self.ids(3, 5)
        model = self.model()
        # Of words that are not rounded, or the gates would choose others for some.
        words = model.layers[1].embeddings
        scale = np.abs(words).max(-1, keepdims=True) / 127
        words.assign(np.round(words / scale) * scale)
        floats = model(ids)
        with self.assertWarns(UserWarning):  # Keras's, of each layer that it does not quantize
            model.quantize("int8")
        expected = model(ids)
        self.assertAllClose(expected, floats, atol=0.3)
        kernels = [w.path for w in model.weights if w.dtype == "int8"]
        self.assertLen([p for p in kernels if p.startswith("moe/")], 4)
        model.save(folder / "model.keras")
        model.save_weights(folder / "model.weights.h5")
        model.export(folder / "exported", verbose=False)
        tf.train.Checkpoint(model=model).write(str(folder / "checkpoint"))

        loaded = keras.models.load_model(folder / "model.keras")
        self.assertEqual([(w.path, w.dtype) for w in loaded.weights], [(w.path, w.dtype) for w in model.weights])
        self.assertAllEqual(loaded(ids), expected)
        again = keras.Model.from_config(loaded.get_config())
        again.load_weights(folder / "model.weights.h5")
        self.assertAllEqual(again(ids), expected)
        for weight in again.weights:
            weight.assign(tf.zeros_like(weight))
        tf.train.Checkpoint(model=again).read(str(folder / "checkpoint")).assert_existing_objects_matched()
        self.assertAllEqual(again(ids), expected)
        served = tf.saved_model.load(str(folder / "exported"))
        self.assertAllClose(served.serve(tf.constant(ids[:1, :2], tf.int32)), model(ids[:1, :2]), rtol=1e-4, atol=1e-4)

        inside = keras.Sequential([keras.Input((None, 8)), SparseMoE.from_config(loaded.get_layer("moe").get_config())])
        self.assertEqual(inside.layers[0].experts.hidden_kernel.dtype, "int8")

    def test_layers_as_experts(self):
        model = keras.Sequential([keras.Input((4,)), SparseMoE(3, k=2, expert=lambda: keras.layers.Dense(4))])
        x = self.normal(5, 4)
        with self.assertWarns(UserWarning):
            model.quantize("int8")
        path = pathlib.Path(self.get_temp_dir(), "layers.keras")
        model.save(path)
        loaded = keras.models.load_model(path)
        self.assertEqual({layer.kernel.dtype for layer in loaded.layers[0].experts.layers}, {"int8"})
        self.assertAllEqual(loaded(x), model(x))

    def test_is_not_trained(self):
        model = self.model()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss, run_eagerly=True)
        model.quantize("int8", filters="experts")
        ids = self.ids(3, 5)
        self.assertTrue(np.all(np.isfinite(model.evaluate(ids, ids, verbose=0))))
        with self.assertRaisesRegex(ValueError, "for inference, and cannot be trained"):
            model.train_on_batch(ids, ids)

    def test_policies_of_its_own(self):
        """A map of policies in `dtype`, which a saved layer has too."""
        half = keras.dtype_policies.get("bfloat16")
        policies = keras.dtype_policies.DTypePolicyMap("float32", {".*/experts": half, ".*/shared_expert/.*": half})
        layer = SparseMoE(4, 6, k=2, shared_expert_hidden=5, dtype=policies)
        x = self.normal(3, 5, 8)
        expected = layer(x)
        self.assertEqual((layer.experts.hidden_kernel.dtype, layer.gate.kernel.dtype), ("bfloat16", "float32"))
        self.assertEqual(expected.dtype, tf.float32)
        copy = SparseMoE.from_config(layer.get_config())
        copy.build((None, 8))
        copy.set_weights(layer.get_weights())
        self.assertAllEqual(copy(x), expected)
