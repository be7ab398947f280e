from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.mesh.helpers import Program, strategy_on
from tests.references import normal_cdf
from tf_moe.ops import noise


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
        # The least radius and the largest one, next to the four axes: the lowest bits are the angle.
        quarters = np.array([0, 2**12 - 1, 2**12, 2**13 - 1, 2**13, 3 * 2**12 - 1, 3 * 2**12, 2**14 - 1])
        for radius, expected in ((2**17 - 1, 2.0**-9), (-(2**17), (38 * np.log(2)) ** 0.5)):
            bits = tf.constant(radius * 2**14 + quarters, tf.int32)
            with mock.patch.object(tf.random, "stateless_uniform", return_value=bits):
                numbers = noise.normal([16], tf.constant([0, 0]), None).numpy()
            self.assertAllClose(np.sort(numbers), np.sort(-numbers), rtol=0, atol=1e-6)
            self.assertAllClose(np.hypot(*numbers.reshape(2, 8)), np.full(8, expected), rtol=1e-4)
            self.assertAllClose(np.abs(numbers).max(), expected, rtol=1e-4)

        extremes = tf.constant([0.0, 1 - 2.0**-23])
        with mock.patch.object(tf.random, "stateless_uniform", return_value=extremes):
            self.assertAllEqual(noise.between_0_and_1([2], tf.constant([0, 0]), None), [2.0**-24, 1 - 2.0**-24])

    def test_both_of_a_pair_are_independent(self):
        seed = self.rng.integers(0, 2**31, 2).astype("int32")
        one, other = np.split(noise.normal([1000, 200], seed, None).numpy(), 2, axis=1)
        for a, b in ((one, other), (np.abs(one), np.abs(other)), (one, other**2), (one[:, :-1], one[:, 1:])):
            self.assertLess(abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]), 5 / one.size**0.5)

    def test_rows_of_a_draw(self):
        seed = self.rng.integers(0, 2**31, 2).astype("int32")
        for columns in (1, 2, 5, 64):
            whole = noise.Noise(seed).whole([23, columns])
            for start, rows in ((0, 23), (0, 4), (8, 7), (20, 3), (12, 0)):
                got = noise.Noise(seed).rows(tf.constant(start), tf.constant(rows), columns)
                self.assertAllClose(got, whole[start : start + rows], rtol=1e-6, atol=1e-6)

    def test_shapes(self):
        seed = tf.constant([1, 2])
        for numbers in (noise.normal, noise.between_0_and_1):
            for shape in ([3], [2, 5], [2, 3, 4], [0, 3], []):
                expected = numbers(shape, seed, None)
                self.assertEqual(expected.shape, shape)
                for form in (tuple(shape), tf.TensorShape(shape), tf.constant(shape, tf.int32)):
                    self.assertAllEqual(numbers(form, seed, None), expected)

    def test_shapes_on_a_mesh(self):
        strategy = strategy_on(2)
        for shape in ((4, 2), tf.TensorShape([4, 2]), [4, 2]):
            for numbers in (noise.normal, noise.between_0_and_1):

                def function(seed, numbers=numbers, shape=shape):
                    return strategy.shards.split(numbers(shape, strategy.shards.whole(seed), strategy.shards))

                got = Program(strategy, function)(np.int32([1, 2]))
                self.assertAllClose(got.reshape(4, 2), numbers(shape, tf.constant([1, 2]), None))

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
