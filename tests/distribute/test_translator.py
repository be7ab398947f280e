"""A step of training the translation model on a mesh is that of one device."""

from contextlib import nullcontext

import keras
import numpy as np

from tests.base import TestCase
from tests.distribute.helpers import CLOSE, histories_close
from tests.mesh.helpers import strategy_on
from tf_moe.models import Perplexity, SmoothedCrossentropy, Translator

V = 12
SIZES = {"width": 4, "lstm_units": 6, "encoder_layers": 2, "num_experts": 4, "expert_hidden": 5, "k": 2, "dropout": 0.0}


class TranslatorOnAMeshTest(TestCase):
    def test_a_step_is_that_of_one_device(self):
        source, target = self.rng.integers(3, V, (4, 5)), self.rng.integers(3, V, (4, 6))
        # No two targets begin alike: between equal tokens the balanced gate chooses by how they are rounded.
        source[1, 3:], target[2, 3:], target[:, 0] = 0, 0, 3 + self.rng.permutation(V - 3)[:4]
        x, y = (source.astype("int32"), target[:, :-1].astype("int32")), target[:, 1:].astype("int32")
        strategy, models = strategy_on(2), []
        for scope in (nullcontext(), strategy.scope()):
            with scope:
                model = Translator(V, **SIZES)
                # A large epsilon: Adam otherwise makes full steps of rounding errors.
                optimizer = keras.optimizers.Adam(0.1, epsilon=1e-3)
                eagerly = not models  # to be traced takes longer than the step
                model.compile(optimizer, SmoothedCrossentropy(), weighted_metrics=[Perplexity()], run_eagerly=eagerly)
            models.append(model)
        one, many = models
        before = [0.5 * self.normal(*w.shape) for w in one.get_weights()]
        for model in models:
            model.set_weights(before)
        expected, found = (model.train_on_batch(x, y, return_dict=True) for model in models)
        histories_close(self, found, expected)
        for ours, want in zip(many.get_weights(), one.get_weights(), strict=True):
            self.assertAllClose(ours, want, **CLOSE)
        moved = [np.abs(want - start).max() for start, want in zip(before, one.get_weights(), strict=True)]
        self.assertGreater(min(moved), 1e-4)  # there is something to compare
