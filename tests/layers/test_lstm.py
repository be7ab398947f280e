"""The layer against its well-known twin, keras.layers.LSTM, and what Keras asks of a layer."""

import os
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.base import TestCase
from tests.recurrence.test_scan import reference
from tf_moe.layers.lstm import LSTM

B, T, D, UNITS = 4, 6, 3, 5
MASKS = {
    "right": np.arange(T) < np.array([[6], [4], [1], [2]]),
    "left": np.arange(T) >= np.array([[0], [3], [5], [2]]),
    "holes": np.array([[1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 1], [0, 0, 1, 0, 0, 0]], bool),
    "all": np.zeros((B, T), bool),
    "one sample": np.arange(T) < np.array([[6], [0], [3], [6]]),
}
OPTIONS = [
    {},
    {"return_sequences": True},
    {"return_sequences": True, "return_state": True},
    {"return_state": True},
    {"return_sequences": True, "return_state": True, "go_backwards": True},
    {"return_sequences": True, "return_state": True, "zero_output_for_mask": True},
    {"zero_output_for_mask": True, "go_backwards": True},
    {"return_sequences": True, "use_bias": False},
    {"return_sequences": True, "unroll": True},
    {"return_sequences": True, "activation": "relu", "recurrent_activation": "hard_sigmoid"},
    {"return_state": True, "activation": None, "recurrent_activation": "sigmoid"},
    {"return_sequences": True, "activation": "softmax", "recurrent_activation": "tanh"},
    {"return_sequences": True, "dropout": 0.4, "seed": 3},
    # use_cudnn: without it Keras 3.15 crashes on the four masks of implementation 1
    {"return_sequences": True, "dropout": 0.4, "seed": 3, "implementation": 1, "use_cudnn": False},
    {"return_sequences": True, "recurrent_dropout": 0.4, "seed": 3},
    {"return_state": True, "dropout": 0.5, "recurrent_dropout": 0.3, "seed": 3, "go_backwards": True},
    {"return_sequences": True, "dropout": 1.0, "seed": 3},
]


def run(layer, inputs, mask=None, states=None, training=True):
    """Outputs, and the gradients of a fixed mixture of them to the inputs, the states and the weights."""
    inputs = tf.constant(inputs)
    states = None if states is None else [tf.constant(x) for x in states]
    with tf.GradientTape() as tape:
        tape.watch([inputs, states or []])
        outputs = layer(inputs, initial_state=states, mask=mask, training=training)
        flat = [outputs] if tf.is_tensor(outputs) else list(outputs)
        mixtures = [tf.reduce_sum(x * tf.cos(tf.range(tf.size(x), dtype=x.dtype) + n)) for n, x in
                    enumerate(tf.reshape(x, [-1]) for x in flat)]  # fmt: skip
        loss = tf.add_n(mixtures)
    sources = [inputs, *(states or []), *[w.value for w in layer.trainable_weights]]
    return flat, tape.gradient(loss, sources)


class TwinTest(TestCase):
    """The same weights in keras.layers.LSTM and ours."""

    def twins(self, width=D, **options):
        twins = [cls(UNITS, **options) for cls in (keras.layers.LSTM, LSTM)]
        for layer in twins:
            layer.build((B, T, width))
        weights = [0.5 * self.normal(*w.shape) for w in twins[0].get_weights()]
        for layer in twins:
            layer.set_weights(weights)
        return twins

    def check(self, mask=None, states=False, training=True, **options):
        inputs = self.normal(B, T, D)
        states = [self.normal(B, UNITS), self.normal(B, UNITS)] if states else None
        pairs = (tf.nest.flatten(run(layer, inputs, mask, states, training)) for layer in self.twins(**options))
        for expected, found in zip(*pairs, strict=True):
            # Sums over all steps differ in their last bits, which are those of the largest terms.
            self.assertAllClose(found, expected, rtol=1e-5, atol=1e-6 * (10 + np.abs(expected).max()))

    def test_options(self):
        for options in OPTIONS:
            for mask in (None, "holes"):
                with self.subTest(mask=mask, **options):
                    self.check(MASKS.get(mask), states=mask is not None, **options)

    def test_masks(self):
        of_masks = OPTIONS[2], OPTIONS[5], OPTIONS[6], {"return_sequences": True, "go_backwards": True}
        for n, (name, mask) in enumerate(MASKS.items()):
            for m, options in enumerate(of_masks):
                states = (n + m) % 2 == 0
                with self.subTest(mask=name, states=states, **options):
                    self.check(mask, states=states, **options)

    def test_masks_of_other_forms(self):
        inputs = self.normal(B, T, D)
        _, layer = self.twins(return_sequences=True)
        expected = layer(inputs, mask=MASKS["holes"])
        self.assertAllEqual(layer(inputs, mask=MASKS["holes"][..., None]), expected)
        self.assertAllEqual(layer(inputs, mask=MASKS["holes"].astype("float32")), expected)

    @given(st.sampled_from(OPTIONS), st.sampled_from([None, *MASKS]), st.booleans(), st.booleans())
    @settings(max_examples=12, deadline=None)
    def test_combinations(self, options, mask, states, training):
        self.check(MASKS.get(mask), states=states, training=training, **options)

    def test_stateful(self):
        first, second = self.normal(B, T, D), self.normal(B, T, D)
        twins = self.twins(stateful=True, return_sequences=True)
        for inputs in (first, second):
            expected, found = (layer(inputs) for layer in twins)
            self.assertAllClose(found, expected, rtol=1e-5, atol=1e-5)
        fresh = twins[1](second)
        twins[1].reset_state()
        expected = twins[0](first, initial_state=[np.zeros((B, UNITS), "float32")] * 2)
        self.assertAllClose(twins[1](first), expected, rtol=1e-5, atol=1e-5)
        self.assertNotAllClose(fresh, twins[1](second))

    def test_low_precision(self):
        for policy, tolerance in (("mixed_bfloat16", 0.15), ("mixed_float16", 0.02)):
            inputs = self.normal(B, T, D)
            twins = self.twins(return_sequences=True, return_state=True, dtype=policy)
            dtype = twins[1].compute_dtype
            expected, found = ([tf.cast(x, "float32") for x in layer(inputs, mask=MASKS["holes"])] for layer in twins)
            self.assertEqual({x.dtype for x in twins[1](inputs)}, {tf.as_dtype(dtype)})
            self.assertAllClose(found, expected, rtol=tolerance, atol=tolerance)
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.cast(twins[1](inputs, training=True)[0], "float32") ** 2)
            for gradient in tape.gradient(loss, [w.value for w in twins[1].trainable_weights]):
                self.assertEqual(gradient.dtype, tf.float32)
                self.assertGreater(np.abs(gradient).max(), 0)

    def test_gradient_of_a_bias_over_many_steps(self):
        inputs = self.normal(64, 64, D)
        gradients = {}
        for policy in ("float32", "mixed_bfloat16", "mixed_float16"):
            for projection in (None, 2):
                layer = LSTM(UNITS, projection=projection, return_sequences=True, dtype=policy)
                layer.build(inputs.shape)
                rng = np.random.default_rng(5)
                for weight in layer.trainable_weights:
                    weight.assign(rng.normal(0, 0.3, weight.shape))
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(tf.cast(layer(inputs, training=True), "float32"))
                gradients[policy, projection] = tape.gradient(loss, layer.cell.bias.value)
        for (policy, projection), gradient in gradients.items():
            expected = gradients["float32", projection]
            self.assertLess(tf.norm(gradient - expected), 0.02 * tf.norm(expected), policy)

    def test_float64(self):
        inputs = self.normal(B, T, D, dtype="float64")
        expected, found = (layer(inputs) for layer in self.twins(dtype="float64"))
        self.assertAllClose(found, expected, rtol=1e-12, atol=1e-12)

    def test_bidirectional(self):
        inputs, outputs = self.normal(B, T, D), []
        for cls in (keras.layers.LSTM, LSTM):
            keras.utils.set_random_seed(1)
            layer = keras.layers.Bidirectional(cls(UNITS, return_sequences=True, zero_output_for_mask=True))
            outputs.append(layer(inputs, mask=MASKS["right"]))
        self.assertAllClose(*outputs, rtol=1e-5, atol=1e-5)

    def test_the_same_initial_weights_and_names(self):
        weights = []
        for cls in (keras.layers.LSTM, LSTM):
            keras.utils.set_random_seed(2)
            layer = cls(UNITS, name="twin")
            layer.build((B, T, D))
            weights.append([(w.path, w.numpy()) for w in layer.weights])
        self.assertEqual([path for path, _ in weights[0]], [path for path, _ in weights[1]])
        self.assertAllEqual([w.shape for _, w in weights[0]], [w.shape for _, w in weights[1]])
        for (_, expected), (_, found) in zip(*weights, strict=True):
            self.assertAllEqual(found, expected)

    @pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras to h5py
    def test_weight_files_move_between_the_two(self):
        path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), "twin.weights.h5")
        inputs, models = self.normal(B, T, D), []
        for cls in (keras.layers.LSTM, LSTM):
            models.append(keras.Sequential([keras.Input((T, D)), cls(UNITS, name="lstm")]))
        models[0].save_weights(path)
        models[1].load_weights(path)
        self.assertAllClose(models[1](inputs), models[0](inputs), rtol=1e-5, atol=1e-5)

    def test_a_second_gradient(self):
        inputs, seconds = self.normal(2, 3, D), []
        for layer in self.twins():
            x = tf.constant(inputs)

            @tf.function
            def penalty(x, layer=layer):
                with tf.GradientTape() as outer:
                    outer.watch(x)
                    with tf.GradientTape() as inner:
                        inner.watch(x)
                        loss = tf.reduce_sum(layer(x, training=True) ** 2)
                    norm = tf.reduce_sum(inner.gradient(loss, x) ** 2)
                return outer.gradient(norm, x)

            seconds.append(penalty(x))
        self.assertAllClose(*seconds, rtol=1e-4, atol=1e-4)


class ProjectionTest(TestCase):
    def test_equals_the_reference(self):
        inputs = self.normal(B, T, D)
        layer = LSTM(UNITS, projection=2, return_sequences=True, return_state=True)
        states = self.normal(B, 2), self.normal(B, UNITS)
        outputs = layer(inputs, initial_state=[tf.constant(x) for x in states])
        kernel, recurrent, bias, projection = layer.get_weights()
        self.assertEqual((recurrent.shape, projection.shape), ((2, 4 * UNITS), (UNITS, 2)))
        z = np.einsum("btd,dk->tbk", inputs, kernel) + bias
        hs, h, c = reference(z, recurrent, *states, projection)
        self.assertAllClose(outputs, (hs.transpose(1, 0, 2), h, c), rtol=1e-5, atol=1e-5)

    def test_the_cell_alone_steps_as_the_layer(self):
        # keras.layers.RNN runs our cell step by step: Keras's loop, our projection
        for options in ({}, {"dropout": 0.3, "recurrent_dropout": 0.4, "seed": 1}):
            layer = LSTM(UNITS, projection=2, return_sequences=True, return_state=True, **options)
            layer.build((B, T, D))
            loop = keras.layers.RNN(layer.cell, return_sequences=True, return_state=True)
            loop.build((B, T, D))
            inputs, states = self.normal(B, T, D), [self.normal(B, 2), self.normal(B, UNITS)]
            seed = layer.cell.seed_generator.state.numpy()
            found = run(layer, inputs, MASKS["holes"], states)
            layer.cell.seed_generator.state.assign(seed)
            expected = run(loop, inputs, MASKS["holes"], states)
            self.assertAllClose(found, expected, rtol=1e-5, atol=1e-5)

    def test_draws_nothing_at_inference(self):
        """keras.layers.LSTM does, which tf.saved_model.save and LiteRT refuse."""
        layer = LSTM(UNITS, dropout=0.3, recurrent_dropout=0.4)
        inputs, state = self.normal(B, T, D), layer.cell.seed_generator.state
        before = state.numpy()
        layer(inputs)
        self.assertAllEqual(state, before)
        layer(inputs, training=True)
        self.assertNotAllEqual(state, before)

    def test_regularizer_and_constraint(self):
        layer = LSTM(
            UNITS,
            projection=2,
            projection_initializer="ones",
            projection_regularizer=keras.regularizers.L1(0.5),
            projection_constraint="non_neg",
        )
        layer.build((B, T, D))
        self.assertAllClose(layer.losses, [0.5 * UNITS * 2])
        self.assertAllEqual(layer.cell.projection_kernel, np.ones((UNITS, 2)))
        self.assertIsInstance(layer.cell.projection_kernel.constraint, keras.constraints.NonNeg)

    def test_wrong_arguments(self):
        for projection in (0, -1, 2.5):
            with self.assertRaisesRegex(ValueError, f"a positive integer, or None. Received: projection={projection}"):
                LSTM(UNITS, projection=projection)
        with self.assertRaisesRegex(ValueError, "Received: projection=2, use_cudnn=True"):
            LSTM(UNITS, projection=2, use_cudnn=True)
        with self.assertRaisesRegex(ValueError, "Received: use_cudnn='yes'"):
            LSTM(UNITS, use_cudnn="yes")


class LayerTest(TestCase):
    """What Keras asks of a layer."""

    def test_config_round_trip(self):
        layer = LSTM(
            UNITS,
            projection=2,
            projection_regularizer="l2",
            projection_constraint="unit_norm",
            projection_initializer="he_normal",
            activation="softsign",
            dropout=0.2,
            seed=7,
            implementation=1,
            use_cudnn=False,
            go_backwards=True,
            zero_output_for_mask=True,
            name="named",
            dtype="mixed_bfloat16",
        )
        config = layer.get_config()
        again = LSTM.from_config(config)
        self.assertEqual(again.get_config(), config)
        self.assertEqual(again.cell.implementation, 1)
        self.assertEqual(again.cell.compute_dtype, "bfloat16")
        self.assertIsInstance(again.projection_constraint, keras.constraints.UnitNorm)

    def test_shapes(self):
        layer = LSTM(UNITS, projection=2, return_sequences=True, return_state=True)
        shapes = layer.compute_output_shape((None, None, D))
        self.assertEqual(tuple(map(tuple, shapes)), ((None, None, 2), (None, 2), (None, UNITS)))
        symbolic = layer(keras.Input((None, D)))
        self.assertEqual([x.shape for x in symbolic], list(map(tuple, shapes)))

    def test_no_steps(self):
        states = [self.normal(B, 2), self.normal(B, UNITS)]
        layer = LSTM(UNITS, projection=2, return_sequences=True, return_state=True, dropout=0.5)
        outputs, h, c = layer(np.zeros((B, 0, D), "float32"), initial_state=states, training=True)
        self.assertEqual(outputs.shape, (B, 0, 2))
        self.assertAllEqual(h, states[0])
        self.assertAllEqual(c, states[1])
        self.assertAllEqual(LSTM(UNITS)(np.zeros((B, 0, D), "float32")), np.zeros((B, UNITS)))

    @parameterized.parameters(0.0, 0.3)
    def test_no_steps_of_an_unknown_number(self, dropout):
        layer = LSTM(UNITS, return_sequences=True, return_state=True, dropout=dropout, recurrent_dropout=dropout)
        layer.build((None, None, D))

        @tf.function(input_signature=[tf.TensorSpec([None, None, D])])
        def run_and_grad(x):
            with tf.GradientTape() as tape:
                outputs, h, _ = layer(x, training=True)
                loss = tf.reduce_sum(outputs) + tf.reduce_sum(h)
            return outputs, tape.gradient(loss, layer.trainable_weights[1].value)

        for steps in (0, 1, 4):
            inputs = self.normal(B, steps, D)
            outputs, gradient = run_and_grad(inputs)
            self.assertEqual(outputs.shape, (B, steps, UNITS))
            if not dropout:
                self.assertAllClose(outputs, layer(inputs)[0], rtol=1e-5, atol=1e-5)
            self.assertEqual(np.abs(gradient).max() > 0, steps > 1)  # the recurrent kernel meets zeros at step 1

    def test_batch_sizes_known_to_some(self):
        layer = LSTM(UNITS, return_sequences=True)
        layer.build((None, None, D))
        for known in (1, 3):
            inputs, states = self.normal(known, T, D), [self.normal(known, UNITS) for _ in range(2)]
            expected = layer(inputs, initial_state=states)
            for batches in ((None, known), (known, None)):
                signature = [tf.TensorSpec([batches[0], None, D])] + 2 * [tf.TensorSpec([batches[1], UNITS])]
                function = tf.function(lambda x, h, c: layer(x, initial_state=[h, c]), input_signature=signature)
                self.assertAllClose(function(inputs, *states), expected, rtol=1e-5, atol=1e-5)

    def test_fit_among_its_neighbours(self):
        model = keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                keras.layers.Embedding(11, D, mask_zero=True),
                keras.layers.Bidirectional(LSTM(UNITS, projection=3, return_sequences=True)),
                keras.layers.TimeDistributed(keras.layers.Dense(4)),
                LSTM(UNITS, dropout=0.1),
                keras.layers.Dense(1),
            ]
        )
        model.compile(keras.optimizers.Adam(0.03), "mse")
        tokens = self.rng.integers(0, 11, (16, T))
        tokens[:, 0] = np.arange(16) % 11  # what is to be told, in equal parts
        losses = model.fit(tokens, (tokens[:, :1] > 5) * 1.0, epochs=8, batch_size=6, verbose=0).history["loss"]
        self.assertLess(losses[-1], 0.9 * losses[0])

    def test_clone_and_states_through_the_functional_api(self):
        inputs, h, c = keras.Input((None, D)), keras.Input((2,)), keras.Input((UNITS,))
        encoded, *states = LSTM(UNITS, projection=2, return_sequences=True, return_state=True)(inputs, [h, c])
        outputs = LSTM(UNITS, projection=2)(encoded, initial_state=states)
        model = keras.Model([inputs, h, c], outputs)
        clone = keras.models.clone_model(model)
        clone.set_weights(model.get_weights())
        arrays = [self.normal(B, T, D), self.normal(B, 2), self.normal(B, UNITS)]
        self.assertAllEqual(clone(arrays), model(arrays))

    def test_integers_are_accepted(self):
        layer = LSTM(UNITS)
        inputs = self.rng.integers(0, 3, (B, T, D))
        self.assertAllEqual(layer(inputs), layer(inputs.astype("float32")))

    def test_unknown_time_cannot_be_unrolled(self):
        with self.assertRaisesRegex(ValueError, "Cannot unroll"):
            signature = [tf.TensorSpec([B, None, D])]
            tf.function(LSTM(UNITS, unroll=True), input_signature=signature).get_concrete_function()

    def test_a_layer_of_its_own_stays_alone(self):
        # one cell is tracked, not Keras's and ours
        layer = LSTM(UNITS)
        layer.build((B, T, D))
        self.assertEqual(len(layer._flatten_layers(include_self=False)), 1)
