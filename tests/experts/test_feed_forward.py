import json
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.experts import FeedForward
from tf_moe.ops.arrangements import Ragged

ACTIVATIONS = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "softmax": lambda z: np.exp(z) / np.exp(z).sum(),
    None: lambda z: z,
}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


class FeedForwardTest(TestCase):
    """E experts, S rows, D width, H hidden."""

    COUNTS = tf.constant([4, 0, 7, 1])

    def bank(self, width=3, num_experts=4, hidden=5, **kwargs):
        """A built bank whose weights, biases too, are random."""
        layer = FeedForward(num_experts, hidden, **kwargs)
        layer.build((None, width))
        layer.set_weights([self.normal(*w.shape) for w in layer.weights])
        return layer

    def test_against_loops(self):
        rows = self.normal(14, 3)  # the last two are of no expert
        for activation, function in ACTIVATIONS.items():
            for use_bias in (False, True):
                with self.subTest(activation, use_bias=use_bias):
                    layer = self.bank(activation=activation, use_bias=use_bias)
                    self.assertLen(layer.weights, 4 if use_bias else 2)
                    first, second, *biases = (w.astype("float64") for w in layer.get_weights())
                    hidden_bias, output_bias = biases or (np.zeros((4, 5)), np.zeros((4, 3)))
                    expected = np.zeros((14, 3))
                    for s, e in enumerate(np.repeat(np.arange(4), self.COUNTS)):
                        hidden = function(rows[s] @ first[e] + hidden_bias[e])
                        expected[s] = hidden @ second[e] + output_bias[e]
                    self.assertAllClose(layer(rows, self.COUNTS), expected, **CLOSE)
                    self.assertAllClose(tf.function(layer)(rows, self.COUNTS), expected, **CLOSE)
                    if activation == "relu":
                        compiled = tf.function(layer, jit_compile=True)
                        self.assertAllClose(compiled(tf.constant(rows), self.COUNTS), expected, **CLOSE)

    def test_weights_by_name_and_shape(self):
        layer = FeedForward(4, 5, use_bias=True)
        layer.build((None, 3))
        shapes = {w.name: tuple(w.shape) for w in layer.trainable_weights}
        self.assertEqual(
            shapes,
            {"hidden_kernel": (4, 3, 5), "output_kernel": (4, 5, 3), "hidden_bias": (4, 5), "output_bias": (4, 3)},
        )
        self.assertAllEqual(layer.hidden_bias, np.zeros((4, 5)))
        self.assertAllEqual(layer.output_bias, np.zeros((4, 3)))

    def test_initial_kernels(self):
        # A square kernel and a seed are the hardest case: every slice has the same shape, and could have the numbers.
        for initializer in (
            "glorot_uniform",
            keras.initializers.GlorotUniform(seed=7),
            keras.initializers.Orthogonal(7),
        ):
            with self.subTest(repr(initializer)):
                layer = FeedForward(6, 32, kernel_initializer=initializer)
                layer.build((None, 32))
                slices = np.reshape([layer.hidden_kernel, layer.output_kernel], (12, -1))
                # 1024 numbers: a correlation of 0.2 is more than six standard deviations.
                self.assertAllClose(np.corrcoef(slices), np.eye(12), atol=0.2)
        layer = FeedForward(16, 96)
        layer.build((None, 32))
        for kernel in (layer.hidden_kernel, layer.output_kernel):
            limit = np.sqrt(6 / (32 + 96))  # of one expert's kernel, not of the stack
            self.assertLess(np.abs(kernel).max(), limit)
            self.assertAllClose(np.abs(kernel).max(), limit, rtol=0.01)

    def test_one_expert_is_two_dense_layers(self):
        layer = self.bank(num_experts=1, use_bias=True, activation="tanh")
        dense = keras.Sequential([keras.layers.Dense(5, "tanh"), keras.layers.Dense(3)])
        dense.build((None, 3))
        first, second, first_bias, second_bias = (w[0] for w in layer.get_weights())
        dense.set_weights([first, first_bias, second, second_bias])
        rows, d_output = tf.constant(self.normal(8, 3)), tf.constant(self.normal(8, 3))
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(rows)
            ours, theirs = layer(rows, tf.constant([8])), dense(rows)
        self.assertAllClose(ours, theirs, **CLOSE)
        self.assertAllClose(tape.gradient(ours, rows, d_output), tape.gradient(theirs, rows, d_output), **CLOSE)
        d_first, d_second, d_first_bias, d_second_bias = tape.gradient(ours, layer.trainable_weights, d_output)
        expected = tape.gradient(theirs, dense.trainable_weights, d_output)
        for value, want in zip([d_first, d_first_bias, d_second, d_second_bias], expected, strict=True):
            self.assertAllClose(value[0], want, **CLOSE)

    def gradients(self, layer, rows, d_output, counts=COUNTS, **kwargs):
        with tf.GradientTape() as tape:
            tape.watch(rows)
            output = layer(rows, counts, **kwargs)
        return [output, *tape.gradient(output, [rows, *layer.trainable_weights], d_output)]

    def test_recompute_changes_no_number(self):
        for capacity, size in ((None, 12), (7, 28)):
            plain = self.bank(use_bias=True, activation="tanh")
            again = FeedForward(4, 5, use_bias=True, activation="tanh", recompute=True)
            again.build((None, 3))
            again.set_weights(plain.get_weights())
            rows, d_output = tf.constant(self.normal(size, 3)), tf.constant(self.normal(size, 3))
            expected = self.gradients(plain, rows, d_output, capacity=capacity)
            graph = tf.function(lambda r, d, layer=again, c=capacity: self.gradients(layer, r, d, capacity=c))
            for got in (self.gradients(again, rows, d_output, capacity=capacity), graph(rows, d_output)):
                for value, want in zip(got, expected, strict=True):
                    self.assertAllClose(value, want, **CLOSE)

    def test_recompute_computes_twice(self):
        calls = []

        def counted(x):
            calls.append(1)
            return tf.nn.relu(x)

        for recompute, expected in ((False, 1), (True, 2)):
            layer = self.bank(activation=counted, recompute=recompute)
            calls.clear()
            rows = tf.constant(self.normal(28, 3))
            self.gradients(layer, rows, rows, capacity=7)
            self.assertLen(calls, expected)

    def drop_units(self, num_rows, **kwargs):
        """What a step drops, seen through experts that do nothing else: `(num_rows, 64)`, 0 or 2."""
        layer = FeedForward(4, 64, activation=None, dropout=0.5, seed=3, **kwargs)
        layer.build((None, 64))
        layer.set_weights([np.tile(np.eye(64), (4, 1, 1))] * 2)
        return np.asarray(layer(np.ones((num_rows, 64), "float32"), self.COUNTS, training=True))

    def test_dropout_draws_once_for_each_expert(self):
        rows = self.drop_units(12)
        expert = np.repeat(np.arange(4), self.COUNTS)
        first = [rows[expert == e][0] for e in (0, 2, 3)]
        for e, units in zip((0, 2, 3), first, strict=True):
            self.assertAllEqual(rows[expert == e], np.tile(units, (np.sum(expert == e), 1)))
        self.assertAllEqual(np.unique(rows), [0, 2])
        self.assertAllClose(np.mean(first), 1, atol=0.4)  # over 192 numbers: more than five standard deviations
        self.assertLess(np.corrcoef(first).max(initial=0, where=~np.eye(3, dtype=bool)), 0.6)

    def test_dropout_is_the_share_that_is_dropped(self):
        layer = FeedForward(4, 512, activation=None, dropout=0.1)
        layer.build((None, 512))
        layer.set_weights([np.tile(np.eye(512), (4, 1, 1))] * 2)
        units = layer(np.ones((4, 512), "float32"), tf.ones(4, tf.int32), training=True).numpy()
        self.assertAllClose(np.unique(units), [0, 1 / 0.9])
        self.assertAllClose(np.mean(units == 0), 0.1, atol=0.04)  # six standard deviations

    def test_dropout_is_of_training_and_new_in_every_call(self):
        layer, rows = self.bank(dropout=0.5, activation=None, hidden=64), self.normal(12, 3)
        plain = self.bank(activation=None, hidden=64)
        plain.set_weights(layer.get_weights())
        self.assertAllEqual(layer(rows, self.COUNTS), plain(rows, self.COUNTS))
        draws = [layer(rows, self.COUNTS, training=True) for _ in range(100)]
        self.assertNotAllClose(draws[0], draws[1])
        deviation = np.std(draws, axis=0).max()
        self.assertAllClose(
            np.mean(draws, axis=0), plain(rows, self.COUNTS), atol=0.6 * deviation
        )  # a tenth of one expected

    def test_dropout_is_the_same_in_every_form(self):
        """Rows sorted, with a hot expert in the loop, recomputed, with a capacity: values and gradients."""
        counts = tf.constant([1, 40, 0, 3])  # the second is hot
        rows, d_output = self.normal(44, 3), self.normal(44, 3)
        places = np.concatenate([40 * e + np.arange(n) for e, n in enumerate(counts.numpy())]).astype("int32")
        spread = [np.zeros((160, 3), "float32") for _ in range(2)]
        spread[0][places], spread[1][places] = rows, d_output
        weights = self.bank(use_bias=True).get_weights()

        def run(rows, d_output, capacity=None, **kwargs):
            layer = self.bank(use_bias=True, activation="tanh", dropout=0.4, seed=11, **kwargs)
            layer.set_weights(weights)

            @tf.function
            def step(rows, d_output):
                with tf.GradientTape() as tape:
                    tape.watch(rows)
                    output = layer(rows, counts, capacity=capacity, training=True)
                return [output, *tape.gradient(output, [rows, *layer.trainable_weights], d_output)]

            return [np.asarray(x) for x in step(tf.constant(rows), tf.constant(d_output))]

        expected = run(rows, d_output)
        for value, want in zip(run(rows, d_output, recompute=True), expected, strict=True):
            self.assertAllClose(value, want, **CLOSE)
        output, d_rows, *others = run(*spread, capacity=40)
        # Rows that are empty places have biases, and nothing reads them.
        for value, want in zip((output[places], d_rows[places], *others), expected, strict=True):
            self.assertAllClose(value, want, **CLOSE)

    def test_training_without_stacks(self):
        """Where products of stacks are slow: rows as they are, with rows of no expert at the end."""
        rows, d_output = tf.constant(self.normal(14, 3)), tf.constant(self.normal(14, 3))
        weights = self.bank(use_bias=True).get_weights()

        def run(recompute, slow):
            layer = self.bank(use_bias=True, activation="sigmoid", dropout=0.4, seed=11, recompute=recompute)
            layer.set_weights(weights)
            with mock.patch("tf_moe.experts.feed_forward.is_slow", return_value=slow):
                self.assertEqual([layer.takes_block(training) for training in (False, True)], [True, not slow])
                with mock.patch("tf_moe.experts.feed_forward.Ragged", wraps=Ragged) as ragged:
                    step = tf.function(lambda *arguments: self.gradients(layer, *arguments, training=True))
                    found = step(rows, d_output)
                self.assertEqual(ragged.called, slow)
                self.assertNotAllClose(found[0], self.gradients(layer, rows, d_output)[0])  # nothing dropped
            return found

        expected = run(recompute=False, slow=False)
        self.assertAllEqual(expected[0][12:], np.zeros((2, 3)))
        for recompute in (False, True):
            for value, want in zip(run(recompute, slow=True), expected, strict=True):
                self.assertAllClose(value, want, **CLOSE)

    def test_dropout_under_xla(self):
        """Which draws other numbers, but the same ones forward and backward: both are one linear map."""
        counts = tf.constant([1, 40, 0, 3])
        rows, d_output = (tf.constant(self.normal(44, 3)) for _ in range(2))
        layer = self.bank(activation=None, dropout=0.5)
        step = tf.function(lambda *args: self.gradients(layer, *args, counts=counts, training=True), jit_compile=True)
        output, d_rows, *_ = step(rows, d_output)
        self.assertAllClose(tf.reduce_sum(output * d_output), tf.reduce_sum(rows * d_rows), **CLOSE)
        self.assertNotAllClose(output, layer(rows, counts))

    def test_capacity_form_equals_sorted_form(self):
        # The same twelve rows without gaps, and with seven places for each expert.
        layer = self.bank(use_bias=True, activation="tanh")
        rows, d_output = self.normal(12, 3), self.normal(12, 3)
        places = np.concatenate([7 * e + np.arange(n) for e, n in enumerate(self.COUNTS.numpy())]).astype("int32")
        spread, d_spread = np.zeros((28, 3), "float32"), np.zeros((28, 3), "float32")
        spread[places], d_spread[places] = rows, d_output
        expected = self.gradients(layer, tf.constant(rows), tf.constant(d_output))

        def with_capacity(capacity):
            return self.gradients(layer, tf.constant(spread), tf.constant(d_spread), capacity=capacity)

        for name, got in {
            "eager": with_capacity(7),
            "a tensor": tf.function(with_capacity)(tf.constant(7)),
            "xla": tf.function(lambda: with_capacity(7), jit_compile=True)(),
        }.items():
            with self.subTest(name):
                output, d_rows, *d_weights = got
                self.assertEqual(output.shape, (28, 3))
                self.assertAllClose(tf.gather(output, places), expected[0], **CLOSE)
                self.assertAllClose(tf.gather(d_rows, places), expected[1], **CLOSE)
                for value, want in zip(d_weights, expected[2:], strict=True):
                    self.assertAllClose(value, want, **CLOSE)

    def test_config(self):
        layer = self.bank(
            activation="gelu",
            use_bias=True,
            recompute=True,
            kernel_initializer=keras.initializers.HeNormal(seed=3),
            kernel_regularizer=keras.regularizers.L2(0.25),
            kernel_constraint=keras.constraints.MaxNorm(2.0),
            dropout=0.25,
            seed=3,
            name="bank",
        )
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
        copy = keras.saving.deserialize_keras_object(config)
        self.assertIsInstance(copy, FeedForward)
        self.assertEqual(copy.get_config(), layer.get_config())
        self.assertEqual((copy.num_experts, copy.hidden, copy.use_bias, copy.recompute), (4, 5, True, True))
        self.assertEqual((copy.dropout, copy.seed), (0.25, 3))
        self.assertIs(copy.activation, keras.activations.gelu)
        self.assertEqual((copy.kernel_regularizer.l2, copy.kernel_constraint.max_value), (0.25, 2.0))
        copy.set_weights(layer.get_weights())
        rows = self.normal(12, 3)
        self.assertAllEqual(copy(rows, self.COUNTS), layer(rows, self.COUNTS))

    def test_regularizer(self):
        layer = self.bank(kernel_regularizer=keras.regularizers.L2(0.5), use_bias=True)
        layer(self.normal(12, 3), self.COUNTS)
        kernels = layer.get_weights()[:2]  # not the biases
        self.assertAllClose(tf.add_n(layer.losses), 0.5 * sum((k.astype("float64") ** 2).sum() for k in kernels))
        self.assertEqual(self.bank().losses, [])

    def test_constraint_of_each_expert(self):
        # Every unit's incoming weights, along axis 0 of an expert's kernel, have norm 1 at most: axis 1 of the stack.
        layer = self.bank(kernel_constraint=keras.constraints.MaxNorm(1.0, axis=0), use_bias=True)
        layer.set_weights([5 * w for w in layer.get_weights()])
        before = layer.get_weights()
        optimizer = keras.optimizers.SGD(0.0)
        optimizer.apply([tf.zeros(w.shape) for w in layer.trainable_weights], layer.trainable_weights)
        for kernel, old in zip(layer.get_weights()[:2], before, strict=False):
            norms = np.linalg.norm(old, axis=1, keepdims=True)
            self.assertAllClose(kernel, old * np.minimum(1, 1 / norms), **CLOSE)
        for bias, old in zip(layer.get_weights()[2:], before[2:], strict=True):
            self.assertAllEqual(bias, old)

    def test_mixed_precision(self):
        layer = self.bank(dtype="mixed_bfloat16", activation="tanh", use_bias=True)
        plain = FeedForward(4, 5, activation="tanh", use_bias=True)
        plain.build((None, 3))
        plain.set_weights(layer.get_weights())
        self.assertEqual({w.dtype for w in layer.weights}, {"float32"})
        rows = tf.constant(self.normal(12, 3))
        seen = []
        layer.activation = lambda x: seen.append(x.dtype) or tf.tanh(x)
        with tf.GradientTape() as tape:
            output = layer(rows, self.COUNTS)
        self.assertEqual((output.dtype, set(seen)), (tf.bfloat16, {tf.bfloat16}))
        expected = plain(rows, self.COUNTS)
        self.assertAllClose(tf.cast(output, tf.float32), expected, rtol=0.05, atol=0.2)
        self.assertNotAllClose(tf.cast(output, tf.float32), expected, rtol=1e-5, atol=1e-5)
        for gradient in tape.gradient(output, layer.trainable_weights):
            self.assertEqual(gradient.dtype, tf.float32)
