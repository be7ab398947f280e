"""The generated language: its entropy, its facts and its streams."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.text import FactLanguage


def sequences(language, number=20, batch=64, steps=30, **arguments):
    """Words 0 to T of all sequences of some batches."""
    batches = [(x.numpy(), y.numpy()) for x, y, _ in language.batches(batch, steps, **arguments).take(number)]
    return np.concatenate([np.concatenate([x, y[:, -1:]], axis=1) for x, y in batches])


class EntropyTest(TestCase):
    @parameterized.parameters((4, 0.5, 1.0), (5, 0.9, 0.5), (3, 0.0, 1.0), (6, 0.8, 0.0))
    def test_is_that_of_the_markov_chain(self, words, p, exponent):
        """By the stationary distribution of the chain of pairs, from its whole transition matrix."""
        language = FactLanguage(words, p, exponent, seed=int(self.rng.integers(1000)))
        chance = np.arange(1, words + 1) ** -exponent
        chance /= chance.sum()
        step = np.zeros((words, words, words, words))
        for a in range(words):
            for b in range(words):
                step[a, b, b] = (1 - p) * chance
                step[a, b, b, language.facts[a + 1, b + 1] - 1] += p
        matrix = step.reshape(words**2, words**2)
        pairs = np.linalg.matrix_power(matrix, 10_000).mean(axis=0)
        following = step.sum(axis=2).reshape(words**2, words)  # of each pair, the next word's probability
        surprise = -np.sum(following * np.log(np.maximum(following, 1e-300)), axis=1)
        self.assertAllClose(language.entropy, pairs @ surprise, rtol=1e-6)
        self.assertAllClose(language.pair_frequency[1:, 1:], pairs.reshape(words, words), atol=1e-8)
        self.assertAllClose(language.perplexity, np.exp(language.entropy))

    def test_is_the_mean_surprise_of_the_stream(self):
        language = FactLanguage(30, 0.7, 0.8)
        x = sequences(language, number=60)
        chance = np.concatenate([[0], np.arange(1, 31) ** -0.8])
        probability = 0.3 * (chance / chance.sum())[x[:, 2:]]
        probability += 0.7 * (language.facts[x[:, :-2], x[:, 1:-1]] == x[:, 2:])
        self.assertAllClose(language.log_probability(x), np.log(probability))
        self.assertAllClose(-np.log(probability).mean(), language.entropy, rtol=0.02)  # of 111,360 words
        pairs = np.zeros((31, 31))
        np.add.at(pairs, (x[:, 0], x[:, 1]), 1 / len(x))  # the first two words come as often as any others
        self.assertLess(np.abs(pairs - language.pair_frequency).sum(), 0.5)
        frequency = language.pair_frequency.sum(axis=0)
        self.assertAllClose(np.bincount(x[:, 0], minlength=31) / len(x), frequency, atol=0.03)


class StreamTest(TestCase):
    def test_shapes_and_weights(self):
        dataset = FactLanguage(20).batches(3, 5)
        specs = [(spec.shape, spec.dtype) for spec in dataset.element_spec]
        self.assertEqual(specs, [((3, 5), tf.int32), ((3, 5), tf.int32), ((3, 5), tf.float32)])
        x, y, weights = next(iter(dataset))
        self.assertAllEqual(x[:, 1:], y[:, :-1])
        self.assertAllEqual(weights, [[0, 1, 1, 1, 1]] * 3)

    def test_words_are_facts_as_often_as_they_should(self):
        language = FactLanguage(200, 0.75, exponent=0.0)  # by chance a fact comes once in 200 times
        x = sequences(language)
        self.assertBetween(x.min(), 1, 200)
        self.assertBetween(x.max(), 1, 200)
        self.assertAllClose(np.mean(language.facts[x[:, :-2], x[:, 1:-1]] == x[:, 2:]), 0.75 + 0.25 / 200, atol=0.015)

    def test_repeats_by_seed(self):
        one, other = FactLanguage(50, seed=1), FactLanguage(50, seed=1)
        self.assertAllEqual(sequences(one, 2, steps=6, seed=5), sequences(other, 2, steps=6, seed=5))
        self.assertNotAllEqual(sequences(one, 2, steps=6, seed=5), sequences(one, 2, steps=6, seed=6))
        self.assertNotAllEqual(one.facts, FactLanguage(50, seed=2).facts)
        first, second = np.split(sequences(one, 2, steps=6), 2)
        self.assertNotAllEqual(first, second)
        self.assertAllEqual(sequences(one, 5, steps=6, num_batches=2), [*first, *second])  # it ends by itself

    def test_bad_arguments(self):
        with self.assertRaisesRegex(ValueError, "num_words must be at most 4096. Received: num_words=4097"):
            FactLanguage(4097)
        for arguments in ({"num_words": 0}, {"fact_probability": 1.0}, {"exponent": -1}, {"seed": "a"}):
            ((name, value),) = arguments.items()
            with self.assertRaisesRegex(ValueError, f"{name} must be .*Received: {name}={value!r}"):
                FactLanguage(**arguments)
        for arguments in ({"batch_size": 0}, {"steps": 1.5}, {"num_batches": 0}, {"seed": -1}):
            ((name, value),) = arguments.items()
            with self.assertRaisesRegex(ValueError, f"{name} must be .*Received: {name}={value!r}"):
                FactLanguage(5).batches(**{"batch_size": 2, "steps": 3, **arguments})
