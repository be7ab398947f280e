import keras
import numpy as np

from tests.base import TestCase
from tf_moe.layers import LSTM, SparseMoE
from tf_moe.optimizers import FactoredAdam

STEPS, BATCH, TIME, WORDS = 1000, 32, 4, 16


class LowPrecisionTest(TestCase):
    def text(self):
        """Sentences of a language in which each word says how likely the next ones are."""
        chances = self.rng.dirichlet(np.full(WORDS, 0.2), size=WORDS).cumsum(axis=1)
        words = np.empty((STEPS * BATCH, TIME + 1), "int32")
        words[:, 0] = self.rng.integers(WORDS, size=len(words))
        for t in range(TIME):
            draws = self.rng.random((len(words), 1))
            words[:, t + 1] = np.minimum((draws > chances[words[:, t]]).sum(axis=1), WORDS - 1)
        return words

    def train(self, policy, words, weights):
        """Loss at the end of 1000 steps, and the model; weights are those that it begins with."""
        model = keras.Sequential(
            [
                keras.Input((TIME,), dtype="int32"),
                keras.layers.Embedding(WORDS, 16, dtype=policy),
                LSTM(16, return_sequences=True, dtype=policy),
                SparseMoE(4, 16, k=2, seed=1, dtype=policy),
                keras.layers.Dense(WORDS, dtype="float32"),
            ]
        )
        model.set_weights(weights or model.get_weights())
        weights = model.get_weights()
        optimizer = FactoredAdam(0.01)
        if policy == "mixed_float16":  # as Keras does where this is the policy of the whole model
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, entropy, steps_per_execution=100)
        x, y = words[:, :-1], words[:, 1:]
        # A mean over all steps, so that a single one that is not finite would show.
        mean = model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0).history["loss"][-1]
        self.assertTrue(np.isfinite(mean))
        self.assertEqual(int(model.optimizer.iterations), STEPS)
        for weight in model.get_weights():
            self.assertTrue(np.all(np.isfinite(weight)))
        return model.evaluate(x[-4000:], y[-4000:], batch_size=400, verbose=0)[0], weights

    def test_a_thousand_steps_end_where_float32_ends(self):
        words = self.text()
        expected, weights = self.train("float32", words, None)
        self.assertLess(expected, 0.85 * np.log(WORDS))  # it did learn
        for policy in ("mixed_bfloat16", "mixed_float16"):
            with self.subTest(policy):
                self.assertAllClose(self.train(policy, words, weights)[0], expected, rtol=0.05)
