from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.mesh.helpers import Program, strategy_on
from tests.references import normal_cdf
from tf_moe.mesh import noise


class NextSeedTest(TestCase):
    LARGE = (5 + 2**32, 5 + 2**33, 2**62 + 3, 2**63 - 1, -1, -5, -(2**63))

    def test_all_bits_of_a_seed_count(self):
        found = set()
        for seed in (0, 3, 5, 2**31 - 1, 2**32 - 1, 2**32 - 5, *self.LARGE):
            generator = keras.random.SeedGenerator(seed)
            found |= {tuple(noise.next_seed(generator).numpy()) for _ in range(3)}
        self.assertLen(found, 3 * 13)

    def test_a_small_one_stands_for_itself(self):
        for seed in (0, 5, 2**31 - 1):
            generator = keras.random.SeedGenerator(seed)
            for call in range(2):
                self.assertAllEqual(noise.next_seed(generator), [seed, call])

    def test_on_a_mesh(self):
        seeds, strategy = (5, *self.LARGE), strategy_on(2)
        one = [keras.random.SeedGenerator(seed) for seed in seeds]
        with strategy.scope():
            many = [keras.random.SeedGenerator(seed) for seed in seeds]
        program = Program(strategy, lambda: [noise.next_seed(generator) for generator in many])
        for _ in range(2):
            self.assertAllEqual(program(), [noise.next_seed(generator) for generator in one])


class NoiseTest(TestCase):
    def draw(self, mesh, seed, numbers=noise.normal):
        strategy = strategy_on(*mesh)

        def function(seed):
            return strategy.shards.split(numbers([1024, 4], strategy.shards.whole(seed), strategy.shards))

        return Program(strategy, function)(seed).reshape(-1)

    def test_distribution(self):
        """The share of the numbers below each x is the normal distribution's, by Kolmogorov and Smirnov."""
        seed = self.rng.integers(0, 2**31, 2).astype("int32")
        numbers = np.sort(tf.reshape(noise.normal([500, 200], seed, None), [-1]))
        rank = np.arange(1, len(numbers) + 1) / len(numbers)
        distance = np.abs(np.vectorize(normal_cdf)(numbers) - rank).max()
        self.assertLess(distance, 2.5 / len(numbers) ** 0.5)  # beyond by chance once in 130,000 times

    def test_extremes_are_finite_and_symmetric(self):
        extremes = tf.constant([0.0, 1 - 2.0**-23])
        with mock.patch.object(tf.random, "stateless_uniform", return_value=extremes):
            lowest, highest = noise.normal([2], tf.constant([0, 0]), None).numpy()
            self.assertAllEqual(noise.between_0_and_1([2], tf.constant([0, 0]), None), [2.0**-24, 1 - 2.0**-24])
        self.assertAllClose(normal_cdf(np.float64(lowest)), 2.0**-24, rtol=1e-3, atol=0)
        self.assertEqual(lowest, -highest)

    def test_the_numbers_of_one_device(self):
        seed = self.rng.integers(0, 2**31, 2).astype("int32")
        for numbers in (noise.normal, noise.between_0_and_1):
            expected = tf.reshape(numbers([1024, 4], seed, None), [-1])
            for mesh in ((2, 1), (4, 2)):
                self.assertAllEqual(self.draw(mesh, seed, numbers), expected)

    def test_too_many_to_draw_them_all(self):
        """Each device draws just its own: standard normal, and all different."""
        seed = self.rng.integers(0, 2**31, 2).astype("int32")
        with mock.patch.object(noise, "LARGEST_COMMON_DRAW", 4095):
            numbers = self.draw((2, 1), seed)
        self.assertGreater(len(np.unique(numbers)), 4080)  # a pair may be equal by chance; one stream twice leaves 2048
        self.assertNotAllClose(numbers, tf.reshape(noise.normal([1024, 4], seed, None), [-1]))
        self.assertAllClose([numbers.mean(), numbers.std()], [0, 1], atol=0.08)  # five standard deviations
