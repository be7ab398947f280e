from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.distribute import ExpertParallelStrategy
from tf_moe.experts import FeedForward
from tf_moe.experts import quantized as module
from tf_moe.experts.quantized import Quantized, matmul_quantized, quantize_stack


def size_of(layer):
    """Bytes of a layer's weights."""
    return sum(np.prod(w.shape, dtype=int) * tf.as_dtype(w.dtype).size for w in layer.weights)


class QuantizeStackTest(TestCase):
    def test_by_hand(self):
        # Two experts, two columns: the largest of each column becomes 127, and a column of zeros stays zero.
        kernel = np.array([[[1.0, 0.0], [-2.0, 0.0]], [[0.5, 3.0], [0.2, -30.0]]], "float32")
        quantized = quantize_stack(tf.constant(kernel))
        self.assertEqual((quantized.kernel.dtype, quantized.scale.dtype), (np.int8, np.float32))
        # 63.5 and 12.7 are in between: to the even one, and to 13; 0.2 of 0.5 is 50.8.
        self.assertAllEqual(quantized.kernel, [[[64, 0], [-127, 0]], [[127, 13], [51, -127]]])
        self.assertAllClose(quantized.scale[[0, 1, 1], [0, 0, 1]], [127 / 2, 127 / 0.5, 127 / 30], rtol=1e-5)

    def test_is_off_by_half_a_step(self):
        kernel = self.normal(5, 64, 7) * np.exp(self.normal(5, 1, 7))  # columns of many sizes
        quantized = quantize_stack(tf.constant(kernel))
        back = quantized.kernel.astype("float64") / quantized.scale[:, None]
        step = np.abs(kernel).max(axis=1, keepdims=True) / 127
        error = np.abs(back - kernel) / step
        self.assertAllInRange(error, 0, 0.5001)
        self.assertGreater(error.max(), 0.45)  # no finer than eight bits
        self.assertAllEqual(np.abs(quantized.kernel).max(axis=1), np.full((5, 7), 127))

    def test_another_quantizer(self):
        kernel = tf.constant(self.normal(2, 6, 3))
        coarse = quantize_stack(kernel, keras.quantizers.AbsMaxQuantizer(axis=0, value_range=(-7, 7)))
        self.assertEqual(np.abs(coarse.kernel).max(), 7)
        with self.assertRaisesRegex(ValueError, r"one scale for each output column.*shape \(6, 1\)"):
            quantize_stack(kernel, keras.quantizers.AbsMaxQuantizer(axis=1))

    def test_product(self):
        x, kernel = self.normal(5, 4, 6), self.rng.integers(-127, 128, (5, 6, 3)).astype("int8")
        scale = np.exp(self.normal(5, 3))
        expected = np.einsum("eni,eio->eno", x.astype("float64"), kernel / scale[:, None].astype("float64"))
        stack = Quantized(tf.constant(kernel), tf.constant(scale))
        self.assertAllClose(matmul_quantized(tf.constant(x), stack), expected, rtol=1e-4, atol=1e-3)
        self.assertEqual(matmul_quantized(tf.cast(x, tf.bfloat16), stack).dtype, tf.bfloat16)


class QuantizedBankTest(TestCase):
    """The bank of feed-forward experts, quantized in place."""

    COUNTS = tf.constant([4, 0, 7, 1])

    def bank(self, width=6, **kwargs):
        layer = FeedForward(4, 5, **{"use_bias": True, "activation": "tanh", **kwargs})
        layer.build((None, width))
        layer.set_weights([self.normal(*w.shape) for w in layer.weights])
        return layer

    def expected(self, layer, rows):
        """By loops in float64, from the integers."""
        values = {w.name: w.numpy().astype("float64") for w in layer.weights}
        first, second = (values[f"{n}_kernel"] / values[f"{n}_kernel_scale"][:, None] for n in ("hidden", "output"))
        hidden_bias, output_bias = layer.hidden_bias.numpy(), layer.output_bias.numpy()
        output = np.zeros(rows.shape)
        for s, e in enumerate(np.repeat(np.arange(4), self.COUNTS)):
            output[s] = np.tanh(rows[s].astype("float64") @ first[e] + hidden_bias[e]) @ second[e] + output_bias[e]
        return output

    def test_against_loops(self):
        layer, rows = self.bank(), self.normal(14, 6)  # the last two are of no expert
        floats = layer(rows, self.COUNTS)
        layer.quantize("int8")
        expected = self.expected(layer, rows)
        seen = []

        def matmul(x, kernel):
            seen.append(kernel.kernel)
            return matmul_quantized(x, kernel)

        with mock.patch.object(module, "matmul_quantized", matmul):
            for run in (layer, tf.function(layer)):
                self.assertAllClose(run(tf.constant(rows), self.COUNTS), expected, rtol=1e-4, atol=1e-4)
            spread = tf.reshape(tf.tile(rows[:7], [4, 1]), [28, 6])
            with_capacity = tf.function(layer)(spread, self.COUNTS, capacity=7)
        self.assertAllClose(with_capacity[:7], self.expected_of(layer, 0, rows[:7]), rtol=1e-4, atol=1e-4)
        self.assertAllClose(with_capacity[14:21], self.expected_of(layer, 2, rows[:7]), rtol=1e-4, atol=1e-4)
        self.assertAllEqual(with_capacity[7:14], np.zeros((7, 6)))
        # The whole bank is never there in floats: only one expert's kernels are cast at a time.
        self.assertEqual({(k.dtype, k.shape[0]) for k in seen}, {(tf.int8, 1)})
        self.assertNotAllClose(floats, expected, atol=1e-4)
        self.assertAllClose(floats[:12], expected[:12], atol=0.3)

    def expected_of(self, layer, expert, rows):
        counts, self.COUNTS = self.COUNTS, [len(rows) if e == expert else 0 for e in range(4)]
        expected, self.COUNTS = self.expected(layer, rows), counts
        return expected

    def test_bytes(self):
        layer = self.bank(width=64)
        before = size_of(layer)
        layer.quantize("int8")
        kernels, scales, biases = 2 * 4 * 64 * 5, 4 * (5 + 64), 4 * (5 + 64)
        self.assertEqual((before, size_of(layer)), (4 * (kernels + biases), kernels + 4 * (scales + biases)))
        dtypes = {w.name: w.dtype for w in layer.weights}
        self.assertEqual((dtypes["hidden_kernel"], dtypes["output_kernel"]), ("int8", "int8"))
        self.assertEqual([w.name for w in layer.trainable_weights], ["hidden_bias", "output_bias"])

    def test_config_makes_a_quantized_bank(self):
        layer = self.bank()
        layer.quantize("int8")
        self.assertEqual(layer.dtype_policy.name, "int8_from_float32")
        config = keras.saving.serialize_keras_object(layer)
        copy = keras.saving.deserialize_keras_object(config)
        self.assertEqual([(w.name, w.dtype) for w in copy.weights], [(w.name, w.dtype) for w in layer.weights])
        copy.set_weights(layer.get_weights())
        rows = self.normal(12, 6)
        self.assertAllEqual(copy(rows, self.COUNTS), layer(rows, self.COUNTS))

    def test_half_precision(self):
        layer, rows = self.bank(dtype="mixed_bfloat16"), self.normal(12, 6)
        layer.quantize("int8")
        self.assertEqual({w.dtype for w in layer.weights}, {"int8", "float32"})
        output = layer(rows, self.COUNTS)
        self.assertEqual(output.dtype, tf.bfloat16)
        self.assertAllClose(tf.cast(output, tf.float32), self.expected(layer, rows), rtol=0.05, atol=0.2)

    def test_on_a_mesh(self):
        with ExpertParallelStrategy(["CPU:0", "CPU:1"]).scope():
            layer = FeedForward(4, 5)
            layer.build((None, 3))
            with self.assertRaisesRegex(ValueError, "cannot be split over a mesh. Received: 'experts' under"):
                FeedForward(4, 5, dtype="int8_from_float32").build((None, 3))
        with self.assertRaisesRegex(ValueError, "split over a mesh cannot be quantized. Received: 'experts'"):
            layer.quantize("int8")

    def test_errors(self):
        layer, rows = self.bank(), self.normal(12, 6)
        with self.assertRaisesRegex(NotImplementedError, "Only mode='int8' is. Received: mode='int4'"):
            layer.quantize("int4")
        unbuilt = FeedForward(4, 5, dtype="float8_from_float32")
        with self.assertRaisesRegex(NotImplementedError, "Received: mode='float8'"):
            unbuilt.build((None, 3))
        layer.quantize("int8")
        with self.assertRaisesRegex(ValueError, "already quantized"):
            layer.quantize("int8")
        with self.assertRaisesRegex(ValueError, "for inference.*Received: training=True for 'experts'"):
            layer(rows, self.COUNTS, training=True)
