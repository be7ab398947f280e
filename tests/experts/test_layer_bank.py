import json

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.experts import LayerBank

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def nested():
    return keras.Sequential([keras.layers.Dense(5, "tanh"), keras.Sequential([keras.layers.Dense(3)])])


def functional():
    inputs = keras.Input((3,))
    return keras.Model(inputs, inputs + keras.layers.Dense(3, "tanh")(inputs))


class OwnWeight(keras.layers.Layer):
    """With `build`, and without `compute_output_shape`, as most custom layers are."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 3))

    def call(self, inputs):
        return keras.ops.tanh(inputs @ self.kernel)


class Composite(keras.layers.Layer):
    """With neither."""

    def __init__(self, width=3, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = keras.layers.Dense(5, "tanh"), keras.layers.Dense(width)

    def call(self, inputs):
        return self.second(self.first(inputs))


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner, self.drop = Composite(), keras.layers.Dropout(0.5)

    def call(self, inputs, training=False):
        return self.drop(self.inner(inputs), training=training)


class DoubledInTraining(OwnWeight):
    def call(self, inputs, training=False):
        return super().call(inputs) * (2.0 if training else 1.0)


class InModel(keras.layers.Layer):
    """A layer with a bank inside, as SparseMoE is."""

    def __init__(self, bank, **kwargs):
        super().__init__(**kwargs)
        self.bank = bank

    def build(self, input_shape):
        self.bank.build(input_shape)

    def call(self, inputs):
        return self.bank(inputs, tf.constant([4, 4]))


class LayerBankTest(TestCase):
    """Experts of four kinds; expert 1 gets no rows, and the last two rows are of no expert."""

    COUNTS = tf.constant([4, 0, 7, 1])

    def bank(self, **kwargs):
        layers = [keras.layers.Dense(3, "relu"), keras.layers.Dense(3), nested(), functional()]
        bank = LayerBank(layers, **kwargs)
        bank.build((None, 3))
        return bank

    def test_each_expert_on_its_rows(self):
        bank, rows = self.bank(), self.normal(14, 3)
        expected = np.concatenate(
            [bank.layers[0](rows[:4]), bank.layers[2](rows[4:11]), bank.layers[3](rows[11:12]), np.zeros((2, 3))]
        )
        self.assertAllClose(bank(rows, self.COUNTS), expected, **CLOSE)
        self.assertAllClose(tf.function(bank)(rows, self.COUNTS), expected, **CLOSE)

    @parameterized.parameters(
        (lambda: keras.layers.Dense(3), 2),
        (keras.layers.Identity, 0),
        (nested, 4),
        (functional, 2),
        (OwnWeight, 1),
        (Composite, 4),
        (Subclassed, 4),
    )
    def test_any_kind_of_layer_is_built_whole(self, expert, weights):
        bank, rows = LayerBank([expert(), expert()]), self.normal(5, 3)
        bank.build((None, 3))
        self.assertLen(bank.weights, 2 * weights)
        expected = np.concatenate([bank.layers[0](rows[:2]), bank.layers[1](rows[2:])])
        for form in (bank, tf.function(bank)):
            self.assertAllClose(form(rows, tf.constant([2, 3])), expected, **CLOSE)
        self.assertAllClose(
            tf.function(bank, jit_compile=True)(rows[:4], tf.constant([2, 2]), capacity=2), expected[:4], **CLOSE
        )
        self.assertLen(bank.weights, 2 * weights)

    def test_no_rows_at_all(self):
        bank, counts = LayerBank([keras.layers.Dense(3), nested()]), tf.constant([0, 0])
        self.assertAllEqual(bank(tf.zeros([0, 3]), counts), np.zeros((0, 3)))
        self.assertAllEqual(bank(tf.ones([5, 3]), counts), np.zeros((5, 3)))

    def test_an_expert_without_rows_adds_no_loss(self):
        layers = [keras.layers.Dense(3, bias_initializer="ones", activity_regularizer="l2"), keras.layers.Dense(3)]
        bank = LayerBank(layers)
        bank.build((None, 3))

        def losses(counts):
            bank(tf.ones([2, 3]), counts)
            return bank.losses

        for counts, some in (([0, 2], False), ([1, 1], True)):
            eager, graph = sum(losses(tf.constant(counts))), sum(tf.function(losses)(tf.constant(counts)))
            self.assertEqual(eager, graph)
            self.assertEqual(float(eager) > 0, some)

    def test_no_rows_for_an_expert_that_adds_its_input(self):
        # Keras 3.15's eager `add` takes a second argument of no rows for a bias and fails.
        bank, rows = LayerBank([functional(), functional()]), tf.constant(self.normal(2, 3))
        bank.build((None, 3))
        for name, form in {"graph": tf.function(bank, reduce_retracing=True), "eager": bank}.items():
            with self.subTest(name):
                self.assertAllClose(form(rows, tf.constant([2, 0])), bank.layers[0](rows), **CLOSE)

    def test_any_number_of_rows_traced_once(self):
        bank = self.bank()
        form = tf.function(bank, input_signature=[tf.TensorSpec([None, 3]), tf.TensorSpec([4], tf.int32)])
        for counts in ([4, 0, 7, 1], [0, 0, 1, 1], [3, 3, 3, 3]):
            rows = self.normal(sum(counts), 3)
            self.assertAllClose(form(rows, tf.constant(counts)), bank(rows, tf.constant(counts)), **CLOSE)
        self.assertEqual(form.experimental_get_tracing_count(), 1)

    def test_capacity_form(self):
        bank, rows = self.bank(), tf.constant(self.normal(8, 3))  # two places for each
        counts = tf.constant([2, 0, 1, 2])
        expected = np.concatenate([layer(rows[2 * e : 2 * e + 2]) for e, layer in enumerate(bank.layers)])
        for name, form in {
            "eager": bank,
            "graph": tf.function(bank),
            "xla": tf.function(bank, jit_compile=True),
        }.items():
            with self.subTest(name):
                self.assertAllClose(form(rows, counts, capacity=2), expected, **CLOSE)
        known_late = tf.function(lambda capacity: bank(rows, counts, capacity=capacity))
        self.assertAllClose(known_late(tf.constant(2)), expected, **CLOSE)

    def test_xla_needs_a_capacity(self):
        with self.assertRaisesRegex(ValueError, "capacity_factor"):
            tf.function(self.bank(), jit_compile=True)(tf.ones([12, 3]), self.COUNTS)

    def gradients(self, bank, rows, **kwargs):
        with tf.GradientTape() as tape:
            tape.watch(rows)
            output = bank(rows, self.COUNTS, **kwargs)
            loss = tf.reduce_sum(output**3)
        return [output, *tape.gradient(loss, [rows, *bank.trainable_weights], unconnected_gradients="zero")]

    def test_gradients_reach_every_expert_with_rows(self):
        bank, rows = self.bank(), tf.constant(self.normal(14, 3))
        for layer in bank.layers:  # a relu with no unit above zero would have no gradient
            layer.set_weights([self.normal(*w.shape) + (w.ndim == 1) * 3 for w in layer.get_weights()])
        pieces = [rows[:4], rows[4:4], rows[4:11], rows[11:12]]
        expected = []
        for layer, piece in zip(bank.layers, pieces, strict=True):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(piece) ** 3)
            expected += tape.gradient(loss, layer.trainable_weights)
        _, d_rows, *d_weights = self.gradients(bank, rows)
        for weight, value, want in zip(bank.trainable_weights, d_weights, expected, strict=True):
            self.assertAllClose(value, want, rtol=1e-3, atol=1e-3)
            has_rows = all(weight is not w for w in bank.layers[1].weights)
            self.assertEqual(bool(np.any(value)), has_rows, weight.path)
        self.assertAllEqual(d_rows[12:], np.zeros((2, 3)))

    def test_gradients_with_a_capacity(self):
        layers = [keras.layers.Dense(3, "tanh"), keras.layers.Dense(3), nested(), functional()]
        bank, rows = LayerBank(layers), tf.constant(self.normal(8, 3))
        bank.build((None, 3))
        open_shape = tf.function(
            lambda rows: self.gradients(bank, rows, capacity=tf.shape(rows)[0] // 4),
            input_signature=[tf.TensorSpec([None, 3])],
        )
        compiled = tf.function(lambda rows: self.gradients(bank, rows, capacity=2), jit_compile=True)
        with tf.GradientTape() as tape:
            tape.watch(rows)
            output = tf.concat([layer(rows[2 * e : 2 * e + 2]) for e, layer in enumerate(layers)], 0)
            loss = tf.reduce_sum(output**3)
        expected = [output, *tape.gradient(loss, [rows, *bank.trainable_weights])]
        for form in (open_shape, compiled):
            for value, want in zip(form(rows), expected, strict=True):
                self.assertAllClose(value, want, rtol=1e-3, atol=1e-3)

    @parameterized.parameters(None, 2)
    def test_no_expert_has_a_gradient_of_all_rows(self, capacity):
        """Tensors as large as all rows are of the same number for two experts and for eight."""
        found = []
        for experts in (2, 8):
            bank, size = LayerBank([keras.layers.Dense(3) for _ in range(experts)]), 2 * experts
            bank.build((None, 3))

            @tf.function
            def gradient(rows, counts, bank=bank):
                output = bank(rows, counts, capacity=capacity)
                return tf.gradients(tf.reduce_sum(output**3), rows)

            graph = gradient.get_concrete_function(tf.zeros([size, 3]), tf.fill([experts], 2)).graph
            # The gradient of a slice is one too where its shape is known late only.
            whole = [op for op in graph.get_operations() for x in op.outputs if x.shape.as_list() == [size, 3]]
            found.append(len([op for op in whole if op.type != "StridedSliceGrad"]))
            self.assertEmpty([op for op in graph.get_operations() if op.type == "StridedSliceGrad"])
        self.assertEqual(*found)

    def test_recompute_changes_no_number(self):
        layers = [keras.layers.Dense(3, "tanh"), keras.layers.Dense(3), nested(), functional()]
        plain, again = LayerBank(layers), LayerBank(layers, recompute=True)
        plain.build((None, 3))
        again.build((None, 3))
        rows = tf.constant(self.normal(12, 3))
        expected = self.gradients(plain, rows)
        for name, form in {"eager": self.gradients, "graph": tf.function(self.gradients)}.items():
            with self.subTest(name):
                for value, want in zip(form(again, rows), expected, strict=True):
                    self.assertAllClose(value, want, rtol=1e-3, atol=1e-3)

    @parameterized.parameters(True, False)
    def test_recompute_trains_as_the_forward_pass_did(self, training):
        layers = [keras.Sequential([DoubledInTraining()]), DoubledInTraining(), OwnWeight(), functional()]
        plain, again = LayerBank(layers), LayerBank(layers, recompute=True)
        plain.build((None, 3))
        again.build((None, 3))
        rows = tf.constant(self.normal(12, 3))
        expected = self.gradients(plain, rows, training=training)
        for name, form in {"eager": self.gradients, "graph": tf.function(self.gradients)}.items():
            with self.subTest(name):
                for value, want in zip(form(again, rows, training=training), expected, strict=True):
                    self.assertAllClose(value, want, rtol=1e-3, atol=1e-3)

    def test_recompute_computes_twice(self):
        calls = []

        class Counted(keras.layers.Dense):
            def call(self, inputs, training=None):
                calls.append(1)
                return super().call(inputs)

        for recompute, expected in ((False, 2), (True, 4)):
            bank = LayerBank([Counted(3), Counted(3)], recompute=recompute)
            bank.build((None, 3))
            calls.clear()
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(bank(tf.ones([4, 3]), tf.constant([2, 2])) ** 2)
            tape.gradient(loss, bank.trainable_weights)
            self.assertLen(calls, expected)

    def test_training_reaches_dropout(self):
        def expert():
            return keras.Sequential([keras.layers.Dropout(0.5), keras.layers.Dense(3)])

        inputs = keras.Input((3,))
        model = keras.Model(inputs, InModel(LayerBank([expert(), expert()]))(inputs))
        rows = tf.constant(self.normal(8, 3))
        layers = model.layers[-1].bank.layers
        expected = np.concatenate([layers[0].layers[-1](rows[:4]), layers[1].layers[-1](rows[4:])])
        for form in (model, tf.function(model)):
            self.assertAllClose(form(rows), expected, **CLOSE)
            self.assertAllClose(form(rows, training=False), expected, **CLOSE)
            self.assertNotAllClose(form(rows, training=True), expected)
            self.assertNotAllClose(form(rows, training=True), form(rows, training=True))  # drawn anew

    def test_errors(self):
        same = keras.layers.Dense(3)
        with self.assertRaisesRegex(ValueError, "(?s)new layer each time.*Received"):
            LayerBank([same, keras.layers.Dense(3), same])
        for wrong in (tf.nn.relu, keras.layers.Dense, None):
            with self.assertRaisesRegex(ValueError, "Keras layer or model. Received"):
                LayerBank([keras.layers.Dense(3), wrong])
        with self.assertRaisesRegex(ValueError, r"maps width 3 to width 3.*\(None, 4\)"):
            LayerBank([keras.layers.Dense(3), keras.layers.Dense(4)]).build((None, 3))
        with self.assertRaisesRegex(ValueError, r"maps width 3 to width 3.*\(None, 4\)"):
            LayerBank([Composite(), Composite(4)]).build((None, 3))
        with self.assertRaisesRegex(ValueError, "maps width 3 to width 3"):
            LayerBank([keras.layers.Lambda(lambda x: [x, x])]).build((None, 3))

    def test_recompute_refuses_what_draws(self):
        for make in (
            lambda: keras.layers.Dropout(0.5),
            lambda: keras.Sequential([keras.layers.Dense(3), keras.Sequential([keras.layers.Dropout(0.5)])]),
            lambda: keras.layers.GaussianNoise(1.0),
        ):
            with self.assertRaisesRegex(ValueError, "recompute=True"):
                LayerBank([keras.layers.Dense(3), make()], recompute=True).build((None, 3))
            LayerBank([keras.layers.Dense(3), make()]).build((None, 3))

    def test_recompute_refuses_losses_of_activities(self):
        layers = [keras.layers.Dense(3), keras.Sequential([keras.layers.Dense(3, activity_regularizer="l2")])]
        with self.assertRaisesRegex(ValueError, "activity_regularizer"):
            LayerBank(layers, recompute=True).build((None, 3))

    def test_batch_statistics_are_refused_in_training(self):
        """An expert without rows would have NaN for its statistics from then on."""
        frozen = keras.layers.BatchNormalization(trainable=False)
        bank = LayerBank([nested(), keras.Sequential([keras.layers.Dense(3), frozen])])
        bank.build((None, 3))
        rows, counts = self.normal(4, 3), tf.constant([4, 0])
        for form in (bank, tf.function(bank)):
            self.assertAllEqual(np.isfinite(form(rows, counts, training=True)), np.ones((4, 3)))
        self.assertAllEqual(frozen.moving_mean, np.zeros(3))
        frozen.trainable = True
        self.assertAllEqual(np.isfinite(bank(rows, counts)), np.ones((4, 3)))
        with self.assertRaisesRegex(ValueError, "cannot have BatchNormalization in training.*Received: <Batch"):
            bank(rows, counts, training=True)

    def test_config(self):
        bank = self.bank(recompute=True, name="bank")
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(bank)))
        copy = keras.saving.deserialize_keras_object(config)
        self.assertIsInstance(copy, LayerBank)
        self.assertEqual((copy.name, copy.recompute), ("bank", True))
        self.assertEqual([type(e) for e in copy.layers], [type(e) for e in bank.layers])
        copy.set_weights(bank.get_weights())
        rows = self.normal(12, 3)
        self.assertAllEqual(copy(rows, self.COUNTS), bank(rows, self.COUNTS))

    def test_from_config_leaves_the_config_as_it_was(self):
        config = LayerBank([keras.layers.Dense(3)]).get_config()
        for _ in range(2):
            self.assertLen(LayerBank.from_config(config).layers, 1)

    def test_mixed_precision(self):
        layers = [keras.layers.Dense(3, dtype="mixed_bfloat16"), keras.layers.Dense(3, dtype="mixed_bfloat16")]
        bank = LayerBank(layers, dtype="mixed_bfloat16")
        output = bank(self.normal(4, 3), tf.constant([2, 2]))
        self.assertEqual(output.dtype, tf.bfloat16)
        self.assertEqual({w.dtype for w in bank.weights}, {"float32"})

    def test_experts_of_other_policies(self):
        """Whatever each computes in, the rows keep the dtype of the bank."""
        layers = [keras.layers.Dense(3, dtype=policy) for policy in ("float32", "mixed_bfloat16")]
        bank = LayerBank(layers, dtype="mixed_bfloat16")
        for rows, counts, capacity in ((7, [2, 3], None), (6, [2, 3], 3)):
            x = tf.cast(self.normal(rows, 3), tf.bfloat16)
            output = bank(x, tf.constant(counts), capacity=capacity)
            self.assertEqual(output.dtype, tf.bfloat16)
            self.assertAllClose(output[:2], tf.cast(layers[0](x[:2]), tf.bfloat16))
