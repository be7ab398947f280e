import pathlib

import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.experts.test_quantized import size_of
from tests.mesh.helpers import strategy_on
from tf_moe.conversion import quantize_experts
from tf_moe.layers import SparseMoE


class QuantizeExpertsTest(TestCase):
    def layer(self, **kwargs):
        kwargs = {"num_experts": 4, "expert_hidden": 32, "k": 2, "use_bias": True, "name": "moe", **kwargs}
        layer = SparseMoE(**kwargs)
        layer.build((None, 16))
        for weight in layer.weights:
            weight.assign(self.normal(*weight.shape) / 4)
        return layer

    def test_a_layer(self):
        x, mask = self.normal(3, 5, 16), self.rng.random((3, 5)) < 0.7
        for kwargs in ({"shared_expert_hidden": 3, "num_experts": (2, 2), "k": (1, 2)}, {"dtype": "mixed_bfloat16"}):
            layer = self.layer(**kwargs)
            expected = tf.cast(layer(x, mask=mask), tf.float32)
            before, weights = size_of(layer.experts), [w.numpy() for w in layer.weights]
            for mode, share in (("int8", 1 / 4), ("bfloat16", 1 / 2)):
                with self.subTest(f"{mode} {kwargs}"):
                    small = quantize_experts(layer, mode)
                    output = small(x, mask=mask)
                    self.assertEqual((small.name, output.dtype), ("moe", small.compute_dtype))
                    close = 0.06 if mode == "int8" and layer.compute_dtype == "float32" else 0.1
                    self.assertAllClose(tf.cast(output, tf.float32), expected, atol=close)
                    self.assertAllEqual(tf.boolean_mask(output, ~mask), np.zeros((np.sum(~mask), 16)))
                    if layer.compute_dtype == "float32":
                        self.assertNotAllClose(output, expected, atol=1e-6)
                    # Kernels are 4096 numbers; scales and biases are 192 each.
                    self.assertBetween(size_of(small.experts) / before, share, share + 0.13)
                    dtypes = {w.dtype for w in small.weights if "kernel" in w.path and "experts" not in w.path}
                    self.assertEqual(dtypes, {"float32"})
                    copy = SparseMoE.from_config(small.get_config())
                    copy.build((None, 16))
                    copy.set_weights(small.get_weights())
                    self.assertAllEqual(copy(x, mask=mask), output)
            for weight, value in zip(layer.weights, weights, strict=True):
                self.assertAllEqual(weight, value)

    def test_a_model(self):
        ids = self.rng.integers(0, 12, (3, 5))
        model = keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                keras.layers.Embedding(12, 16, mask_zero=True),
                self.layer(),
                keras.layers.Dense(12),
            ]
        )
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
        loss, path = model.evaluate(ids, ids, verbose=0)[0], pathlib.Path(self.get_temp_dir(), "model.keras")
        for mode in ("int8", "bfloat16"):
            small = quantize_experts(model, mode)
            self.assertEqual(small.get_layer("moe").experts.hidden_kernel.dtype, mode)
            self.assertEqual(small.layers[0].embeddings.dtype, "float32")
            self.assertAllClose(small.evaluate(ids, ids, verbose=0)[0], loss, atol=0.02)
            small.save(path)
            loaded = keras.models.load_model(path)
            self.assertEqual([(w.name, w.dtype) for w in loaded.weights], [(w.name, w.dtype) for w in small.weights])
            self.assertAllEqual(loaded(ids[:1, :2]), small(ids[:1, :2]))
        self.assertEqual(model.get_layer("moe").experts.hidden_kernel.dtype, "float32")
        # From half precision to integers, with what is already in the map of policies.
        again = quantize_experts(small, "int8")
        self.assertEqual(again.get_layer("moe").experts.dtype_policy["moe/experts"].name, "int8_from_bfloat16")
        self.assertAllClose(again(ids), model(ids), atol=0.1)

    def test_layers_that_share_a_gate(self):
        first = SparseMoE(3, 5, k=2)
        model = keras.Sequential([keras.Input((4,)), first, SparseMoE(3, 5, k=2, gate=first.gate)])
        copy = quantize_experts(model, "bfloat16")
        self.assertIs(copy.layers[0].gate, copy.layers[1].gate)
        x = self.normal(5, 4)
        self.assertAllEqual(copy.layers[0].route(x).expert_index, first.route(x).expert_index)

    def test_errors(self):
        layer = self.layer()
        for call, error, pattern in (
            (lambda: quantize_experts(layer, "int4"), ValueError, "one of .*Received: mode='int4'"),
            (lambda: quantize_experts(keras.layers.Dense(3), "int8"), TypeError, "model must be a Model"),
            (lambda: quantize_experts(SparseMoE(4, 3, k=2), "int8"), ValueError, "built=False"),
            (lambda: quantize_experts(quantize_experts(layer, "int8"), "int8"), ValueError, "'int8_from_float32'"),
            (
                lambda: quantize_experts(SparseMoE(2, k=1, expert=lambda: keras.layers.Dense(3)), "int8"),
                ValueError,
                "Experts that are Keras layers have methods quantize",
            ),
            (lambda: quantize_experts(self.layer(dtype="mixed_float16"), "int8"), ValueError, "float16"),
            (
                lambda: quantize_experts(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]), "int8"),
                ValueError,
                "with a SparseMoE layer",
            ),
        ):
            with self.subTest(pattern), self.assertRaisesRegex(error, pattern):
                call()
        with strategy_on(2).scope():
            on_mesh = self.layer()
        for mode in ("int8", "bfloat16"):
            with self.assertRaisesRegex(ValueError, "split over a mesh.*on one device"):
                quantize_experts(on_mesh, mode)
        small = quantize_experts(layer, "int8")
        with self.assertRaisesRegex(ValueError, "for inference, and cannot be trained"):
            small(self.normal(3, 16), training=True)
