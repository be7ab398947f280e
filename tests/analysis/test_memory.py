import multiprocessing
import unittest
from pathlib import Path
from unittest import mock

import keras
import numpy as np

import tf_moe
from tests.base import TestCase
from tf_moe.analysis import training_memory
from tf_moe.layers import LSTM, SparseMoE
from tf_moe.models import Translator
from tf_moe.optimizers import FactoredAdam

STATUS = Path("/proc/self/status")


def train(experts):
    """Predicted and measured bytes of one training step, in a process of its own."""
    before = peak()
    inputs = keras.Input((512,))
    model = keras.Model(inputs, keras.layers.Dense(2)(SparseMoE(experts, 1024, k=2)(inputs)))
    model.compile(FactoredAdam(), "mse")
    for _ in range(2):
        model.train_on_batch(np.random.normal(size=(256, 512)), np.zeros((256, 2)))
    return training_memory(model, 256).total, peak() - before


def peak():
    """The most memory this program has had; `ru_maxrss` would count what its parent had when it started it."""
    return next(1024 * int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))


class TrainingMemoryTest(TestCase):
    def test_by_hand(self):
        model = keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                keras.layers.Embedding(10, 8),
                LSTM(6, return_sequences=True),
                SparseMoE(1, 16, k=1),
                keras.layers.Dense(10),
            ]
        )
        weights = 10 * 8 + 4 * 6 * (8 + 6 + 1) + 2 * 6 * 1 + 2 * 6 * 16 + 7 * 10
        memory = training_memory(model, tokens=32)
        self.assertEqual((memory.weights, memory.gradients, memory.slots), (4 * weights, 4 * weights, 0))
        # A row has input, hidden layer and output; a token 8 numbers for each of the gate's logits, and its output.
        moe = 32 * (6 + 16 + 6) + 32 * (8 + 6)
        lstm = 32 * (6 * 6 + 2 * 6 + 8)
        kept = 32 * 8 + lstm + moe + 32 * 10
        self.assertEqual(memory.activations, 4 * (kept + lstm))
        self.assertEqual(memory.total, sum(memory))

    def test_large_gates_keep_less(self):
        def activations(experts, **options):
            inputs = keras.Input((4,))
            model = keras.Model(inputs, SparseMoE(experts, 1, k=2, capacity_factor=1.0, **options)(inputs))
            return training_memory(model, tokens=1024).activations

        self.assertAllClose(activations(1024) / activations(512), 1, atol=0.05)
        by_all = tf_moe.gates.NoisyTopK(1024, 2, normalize="all")
        self.assertAllClose(activations(1024, gate=by_all) / activations(512), 2, atol=0.05)

    def test_options(self):
        def memory(**options):
            inputs = keras.Input((None, 16))
            return training_memory(keras.Model(inputs, SparseMoE(8, 256, k=2, **options)(inputs)), tokens=1024)

        plain, half = memory(), memory(dtype="mixed_bfloat16")
        self.assertEqual(half.weights, plain.weights)
        self.assertLess(half.activations, 0.7 * plain.activations)
        shared = memory(shared_expert_hidden=32)
        self.assertEqual(shared.weights - plain.weights, 4 * 2 * 16 * 32)
        self.assertEqual(shared.activations - plain.activations, 2 * 4 * 1024 * (2 * 32 + 16))

    def test_recompute(self):
        """Of several mixtures all but one are without their hidden layers at any time: of one nothing is saved."""

        def memory(layers, **options):
            inputs = x = keras.Input((None, 16))
            for _ in range(layers):
                x = SparseMoE(8, 256, k=2, capacity_factor=1.0, **options)(x)
            return training_memory(keras.Model(inputs, x), tokens=64)

        hidden = 4 * (2 * 64 * 256)
        for layers in (1, 3):
            plain, again = memory(layers), memory(layers, recompute=True)
            self.assertEqual(again[:3], plain[:3])
            self.assertEqual(plain.activations - again.activations, (layers - 1) * hidden)

    def test_rows_of_the_experts(self):
        """By hand for 64 tokens: each row has its input and its output, and of built-in experts the hidden layer."""

        def activations(**options):
            inputs = keras.Input((None, 16))
            model = keras.Model(inputs, SparseMoE(8, **{"expert_hidden": 256, "k": 2, **options})(inputs))
            kept = training_memory(model, tokens=64).activations / 4 - 64 * 16  # without the inputs
            return kept / 2 - 64 * (8 * 8 + 16)  # the largest layer counts twice; without the gate and the outputs

        self.assertEqual(activations(capacity_factor=1.25), 8 * 20 * (16 + 256 + 16))
        self.assertEqual(activations(capacity_factor=2.0), 8 * 32 * (16 + 256 + 16))
        with mock.patch("tf_moe.experts.feed_forward.is_slow", return_value=True):  # no empty places
            self.assertEqual(activations(), 2 * 64 * (16 + 256 + 16))
        with mock.patch("tf_moe.experts.feed_forward.is_slow", return_value=False):
            self.assertGreater(activations(), 2 * 64 * (16 + 256 + 16))
        layers = {"expert": lambda: keras.layers.Dense(16), "expert_hidden": None}
        self.assertEqual(activations(**layers), 2 * 64 * (16 + 16))
        self.assertEqual(activations(**{**layers, "expert_hidden": 256}), 2 * 64 * (16 + 16))
        self.assertEqual(activations(**layers, capacity_factor=1.25), 8 * 20 * (16 + 16))

    def test_layers_with_several_outputs(self):
        """An LSTM by its cell, whatever it returns; one for each direction; any other layer by all that it returns."""

        class Split(keras.layers.Layer):
            def call(self, inputs):
                return inputs[..., :3], inputs[..., 3:]

            def compute_output_spec(self, inputs):
                return keras.KerasTensor((None, None, 3)), keras.KerasTensor((None, None, inputs.shape[-1] - 3))

        def kept(layer):
            inputs = keras.Input((None, 5))
            model = keras.Model(inputs, layer(inputs))
            return (training_memory(model, tokens=32).activations / 4 / 32 - 5) / 2  # the largest layer counts twice

        lstm = 8 * 7 + 5
        self.assertEqual(kept(keras.layers.LSTM(7, return_sequences=True, return_state=True)), lstm)
        self.assertEqual(kept(LSTM(7, return_state=True)), lstm)
        for merge_mode in ("concat", "sum"):
            layer = keras.layers.LSTM(7, return_sequences=True)
            self.assertEqual(kept(keras.layers.Bidirectional(layer, merge_mode)), 2 * lstm)
        self.assertEqual(kept(keras.layers.Bidirectional(keras.layers.GRU(7, return_sequences=True))), 2 * 7)
        self.assertEqual(kept(Split()), 5)

    def test_models_inside(self):
        """Their inputs are kept as the outputs of what comes before."""
        inputs = keras.Input((None, 5))
        first, second = keras.layers.Dense(6), keras.layers.Dense(7)
        flat = training_memory(keras.Model(inputs, second(first(inputs))), tokens=32)
        middle = keras.Input((None, 6))
        inner = keras.Model(middle, second(middle))
        self.assertEqual(training_memory(keras.Model(inputs, inner(first(inputs))), tokens=32), flat)
        again = keras.Model(inputs, keras.Model(inputs, inner(first(inputs)))(inputs))
        self.assertEqual(training_memory(again, tokens=32), flat)

    def test_models_of_other_kinds_are_refused(self):
        model = Translator(9, width=4, lstm_units=4, encoder_layers=2, num_experts=2, expert_hidden=4, k=1)
        with self.assertRaisesRegex(ValueError, "Sequential and functional models.*'embedding'"):
            training_memory(model, 8)

    def test_slots(self):
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, use_bias=False)])
        model.compile("adam", "mse")
        self.assertEqual(training_memory(model, 1).slots, 0)
        model.optimizer.build(model.trainable_variables)
        self.assertAlmostEqual(training_memory(model, 1).slots, 2 * 4 * 8 * 4, delta=16)  # and its counters

    @unittest.skipUnless(STATUS.exists(), "needs Linux's account of a process's memory")
    def test_measured(self):
        """256 experts of a million weights: a gigabyte, as much for gradients; one more would be noticed."""
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            predicted, measured = pool.apply(train, (256,))
        self.assertGreater(predicted, 2 * 4 * 256 * 2**20)
        self.assertGreater(measured, 0.8 * predicted)  # 0.87 on one core
        self.assertLess(measured, 1.3 * predicted + 400e6)
