import contextlib

import keras
import numpy as np

from tests.base import TestCase
from tf_moe.analysis import DeadExperts, measure_usage
from tf_moe.layers import SparseMoE


class DeadExpertsTest(TestCase):
    def setUp(self):
        super().setUp()
        self.x = self.normal(256, 9)
        self.x[:, -1] = 1  # a feature that is always there, for a gate to be biased by
        self.y = np.tanh(self.x @ self.normal(9, 9)).astype("float32")

    def model(self, bias, weight=0.1):
        """Of 8 experts; the logits of the first two are higher by so much for all inputs."""
        inputs = keras.Input((9,))
        moe = SparseMoE(8, 16, k=2, importance_weight=weight, load_weight=weight, seed=1, name="moe")
        model = keras.Model(inputs, moe(inputs))
        kernel = self.normal(9, 8) * 0.1
        kernel[-1] = [bias, bias, 0, 0, 0, 0, 0, 0]
        moe.gate.kernel.assign(kernel)
        model.compile(keras.optimizers.Adam(0.01), "mse")
        return model

    def test_tells_of_dead_experts(self):
        model, callback = self.model(bias=20.0, weight=0.0), DeadExperts([self.x])
        with self.assertWarnsRegex(UserWarning, r"Epoch 1: 6 of 8 experts of 'moe' .*\(2, 3, 4, 5, 6, 7\)"):
            model.fit(self.x, self.y, verbose=0, callbacks=[callback])
        self.assertEqual(callback.history, {"moe": [[2, 3, 4, 5, 6, 7]]})

    def test_says_nothing_of_living_ones(self):
        callback = DeadExperts([self.x])
        self.model(bias=0.0).fit(self.x, self.y, epochs=2, verbose=0, callbacks=[callback])  # a warning is an error
        self.assertEqual(callback.history, {"moe": [[], []]})

    def test_share(self):
        """Nearly dead counts where it is asked for."""
        model = self.model(bias=2.0, weight=0.0)
        share = sorted(measure_usage(model, [self.x])["moe"].load / 64)[3] + 0.01
        callback = DeadExperts([self.x], share=share)
        callback.set_model(model)
        with self.assertWarns(UserWarning):
            callback.on_epoch_end(0)
        self.assertGreaterEqual(len(callback.history["moe"][0]), 4)
        with self.assertRaisesRegex(ValueError, "share=1.5"):
            DeadExperts([], share=1.5)

    def test_another_model_begins_anew(self):
        callback = DeadExperts([self.x])
        for bias in (20.0, 0.0):
            callback.set_model(self.model(bias, weight=0.0))
            with self.assertWarns(UserWarning) if bias else contextlib.nullcontext():
                callback.on_epoch_end(0)
        self.assertEqual(callback.history, {"moe": [[]]})

    def test_batches_that_cannot_be_looked_at_again(self):
        with self.assertRaisesRegex(ValueError, "gone through at every look"):
            DeadExperts(iter([self.x]))

    def test_default_losses_bring_them_back(self):
        """Six of eight at first. One that fell very far behind may take longer than this."""
        model = self.model(bias=4.0)
        self.assertGreater(measure_usage(model, [self.x])["moe"].load_cv, 1.3)
        model.fit(self.x, self.y, batch_size=64, epochs=200, verbose=0)
        usage = measure_usage(model, [self.x])["moe"]
        self.assertLess(usage.load_cv, 0.6)
        self.assertLessEqual((usage.load == 0).sum(), 1)
