"""Layers, models and losses that several threads or several places share."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.gates import NoisyTopK
from tf_moe.layers import LSTM, SampledSoftmax, SampledSoftmaxLoss, SparseMoE
from tf_moe.mesh.new_variables import experts_of_new_variables, split_over_experts

THREADS = 4


def in_threads(function):
    """What `function(n)` returns in each of several threads, which begin at once."""
    barrier = threading.Barrier(THREADS)

    def run(n):
        barrier.wait()
        return function(n)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


def make_model():
    inputs = keras.Input((None, 4))
    hidden = SparseMoE(4, 3, k=2, name="flat")(LSTM(4, return_sequences=True)(inputs))
    return keras.Model(inputs, SparseMoE((2, 2), 3, k=(1, 2), capacity_factor=2.0, name="levels")(hidden))


class ThreadsTest(TestCase):
    def setUp(self):
        super().setUp()
        self.model = make_model()
        weights = [self.rng.standard_normal(w.shape).astype(w.dtype) for w in self.model.get_weights()]
        self.model.set_weights(weights)
        self.inputs = [self.normal(1 + n % 2, 3, 4) for n in range(THREADS)]  # a trace for a shape takes its time
        self.expected = [self.model(x) for x in self.inputs]

    def check(self, call, rounds):
        """Each thread calls with all inputs, in turns, each beginning with another one."""
        turns = [[(n + turn) % THREADS for turn in range(rounds)] for n in range(THREADS)]
        results = in_threads(lambda n: [call(self.inputs[i]) for i in turns[n]])
        for numbers, outputs in zip(turns, results, strict=True):
            for i, output in zip(numbers, outputs, strict=True):
                self.assertAllClose(output, self.expected[i], rtol=1e-5, atol=1e-5)

    def test_one_model_in_several_threads(self):
        forms = {
            "eager": (self.model, 8),
            "a trace for each shape": (tf.function(lambda x: self.model(x)), 8),
            "one trace": (tf.function(self.model, input_signature=[tf.TensorSpec([None, None, 4])]), 20),
            "predict": (lambda x: self.model.predict(x, verbose=0), 2),
            "predict_on_batch": (self.model.predict_on_batch, 20),
        }
        for name, (call, rounds) in forms.items():
            with self.subTest(name):
                self.check(call, rounds)

    def test_a_layer_of_two_models(self):
        layer = self.model.get_layer("flat")
        others = [keras.Sequential([keras.Input((None, 4)), layer]) for _ in range(THREADS)]
        expected = layer(self.inputs[0])
        functions = [tf.function(other) for other in others]
        for outputs in in_threads(lambda n: [functions[n](self.inputs[0]), others[n](self.inputs[0])]):
            for output in outputs:
                self.assertAllClose(output, expected, rtol=1e-5, atol=1e-5)

    @parameterized.parameters(1, 2)
    def test_dropout_of_an_lstm(self, implementation):
        layer = LSTM(6, dropout=0.5, recurrent_dropout=0.5, implementation=implementation)
        layer.build((None, None, 4))

        def train(n):
            x = np.ones((n + 1, 3, 4), "float32")
            return [layer(x, training=True) for _ in range(20)]

        for n, outputs in enumerate(in_threads(train)):
            self.assertEqual({tuple(y.shape) for y in outputs}, {(n + 1, 6)})

    def test_models_built_at_the_same_time(self):
        weights = self.model.get_weights()

        def build(n):
            model = make_model()
            model.set_weights(weights)
            return model(self.inputs[n])

        for output, expected in zip(in_threads(build), self.expected, strict=True):
            self.assertAllClose(output, expected, rtol=1e-5, atol=1e-5)

    def test_what_is_being_built_is_known_to_its_thread_alone(self):
        barrier = threading.Barrier(THREADS)

        def ask(n):
            with split_over_experts(n):
                barrier.wait()
                return experts_of_new_variables()

        self.assertEqual(in_threads(ask), list(range(THREADS)))

    def test_a_loss_computed_in_two_threads_at_once(self):
        """One evaluates while the other one trains: each has the layer that its own predictions come from, or none."""
        barrier = threading.Barrier(THREADS)

        class Loss(SampledSoftmaxLoss):
            def call(self, y_true, y_pred):
                barrier.wait()  # all have begun
                try:
                    return super().call(y_true, y_pred)
                finally:
                    barrier.wait()  # none has ended

        x, targets = self.normal(5, 3), self.rng.integers(0, 9, 5)
        layers = [SampledSoftmax(9, 50_000, sampling="uniform") for _ in range(THREADS)]
        predictions = [layer(x, training=n % 2 == 0) for n, layer in enumerate(layers)]
        loss, alone = Loss(), SampledSoftmaxLoss()
        losses = in_threads(lambda n: loss(targets, predictions[n]))
        self.assertAllClose(losses, [alone(targets, y) for y in predictions], rtol=0.05)


class SharingTest(TestCase):
    def test_a_layer_used_twice_draws_twice_and_adds_both_losses(self):
        inputs = keras.Input((4,))
        layer = SparseMoE(8, 3, k=2)
        model = keras.Model(inputs, [layer(inputs), layer(inputs)])
        first, second = model(np.ones((50, 4), "float32"), training=True)
        self.assertLen(model.losses, 2)
        self.assertNotAllClose(model.losses[0], model.losses[1])
        self.assertNotAllClose(first, second)
        model(np.ones((50, 4), "float32"), training=True)
        self.assertLen(model.losses, 2)  # those of the call before are gone
        first, second = model(np.ones((50, 4), "float32"))
        self.assertAllEqual(first, second)

    def test_a_gate_of_two_layers_stays_one(self):
        gate = NoisyTopK(4, 2)
        inputs = keras.Input((4,))
        outputs = SparseMoE(4, 3, k=2, gate=gate)(SparseMoE(4, 3, k=2, gate=gate)(inputs))
        model = keras.Model(inputs, outputs)
        x = self.normal(20, 4)
        model.compile("adam", "mse", run_eagerly=True)
        model.fit(x, x, verbose=0)
        path = Path(self.get_temp_dir()) / "model.keras"
        model.save(path)
        loaded = keras.saving.load_model(path)
        self.assertAllClose(loaded(x), model(x))
        for one in (model, loaded):
            self.assertLen(one.trainable_weights, 2 + 2 * 2)
            self.assertIs(one.layers[1].gate, one.layers[2].gate)
            one(x, training=True)
            self.assertLen(one.losses, 2)
        loaded.fit(x, x, verbose=0)
        copy = SparseMoE.from_config(loaded.layers[1].get_config())
        self.assertIsNot(copy.gate, loaded.layers[1].gate)
