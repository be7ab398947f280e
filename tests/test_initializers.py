import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.initializers import PerExpert, of_stream


class PerExpertTest(TestCase):
    def test_each_slice_has_the_statistics_of_a_weight_of_its_own(self):
        # Expected standard deviations by the formulas of the initializers, for one (40, 60) kernel.
        for name, expected in {
            "glorot_uniform": (2 / (40 + 60)) ** 0.5,
            "glorot_normal": (2 / (40 + 60)) ** 0.5,
            "he_uniform": (2 / 40) ** 0.5,
            "he_normal": (2 / 40) ** 0.5,
            "lecun_uniform": (1 / 40) ** 0.5,
            "lecun_normal": (1 / 40) ** 0.5,
            "random_normal": 0.05,
            "random_uniform": 0.1 / 12**0.5,
        }.items():
            with self.subTest(name):
                value = PerExpert(name)((16, 40, 60)).numpy()
                for kernel in value:
                    self.assertAllClose(kernel.std(), expected, rtol=0.1)
                    self.assertAllClose(kernel.mean(), 0, atol=0.15 * expected)
                self.assertAllClose(value.std(), expected, rtol=0.02)

    def test_limits_are_those_of_the_plain_initializer(self):
        value = PerExpert("glorot_uniform")((8, 40, 60)).numpy()
        limit = (6 / (40 + 60)) ** 0.5
        self.assertAllInRange(np.abs(value).max(), 0.99 * limit, limit * (1 + 1e-6))

    def test_modes_of_variance_scaling(self):
        for mode, fan in (("fan_in", 40), ("fan_out", 60), ("fan_avg", 50)):
            initializer = keras.initializers.VarianceScaling(3.0, mode=mode, distribution="untruncated_normal")
            self.assertAllClose(np.std(PerExpert(initializer)((16, 40, 60))), (3 / fan) ** 0.5, rtol=0.03)

    def test_slices_of_other_ranks(self):
        # A vector of 300 an expert has fans of 300, a (3, 10, 20) convolution's fans are 30 and 60.
        for shape, variance in (((50, 300), 1 / 300), ((16, 3, 10, 20), 2 / (30 + 60))):
            with self.subTest(shape=shape):
                plain = np.std([keras.initializers.GlorotUniform(seed)(shape[1:]) for seed in range(50)])
                self.assertAllClose(plain, variance**0.5, rtol=0.05)
                self.assertAllClose(np.std(PerExpert("glorot_uniform")(shape)), plain, rtol=0.05)

    def test_slices_differ(self):
        for name in ("glorot_uniform", "random_normal", "orthogonal"):
            value = PerExpert(name)((6, 5, 4)).numpy()
            for i in range(6):
                for j in range(i):
                    self.assertNotAllClose(value[i], value[j], msg=name)

    def test_streams_differ(self):
        for name in ("GlorotUniform", "RandomNormal", "Orthogonal"):
            for seed in (None, 5):
                with self.subTest(name, seed=seed):
                    # One instance for both, as a layer has for two weights.
                    initializer = getattr(keras.initializers, name)(seed=seed)
                    first, second = (PerExpert(initializer, stream)((3, 5, 5)).numpy() for stream in (0, 1))
                    for i in range(3):
                        for j in range(3):
                            self.assertNotAllClose(first[i], second[j])

    def test_seeded_is_repeatable(self):
        for name in ("GlorotUniform", "RandomNormal", "TruncatedNormal", "Orthogonal"):
            for stream in (0, 3):
                kind = getattr(keras.initializers, name)
                first, again, other = (PerExpert(kind(seed=seed), stream)((3, 5, 4)) for seed in (5, 5, 6))
                self.assertAllEqual(first, again)
                self.assertNotAllClose(first, other)

    def test_unseeded_instances_differ(self):
        for name in ("glorot_uniform", "random_normal", "orthogonal"):
            self.assertNotAllClose(PerExpert(name)((3, 5, 4)), PerExpert(name)((3, 5, 4)))

    def test_seed_generator_moves_on(self):
        initializer = keras.initializers.GlorotUniform(seed=keras.random.SeedGenerator(1))
        self.assertNotAllClose(PerExpert(initializer)((3, 5, 4)), PerExpert(initializer, 1)((3, 5, 4)))

    def test_orthogonal_slices_are_orthogonal(self):
        for kernel in PerExpert("orthogonal")((3, 6, 4)).numpy():
            self.assertAllClose(kernel.T @ kernel, np.eye(4), atol=1e-5)

    def test_constants(self):
        self.assertAllEqual(PerExpert("zeros")((2, 3, 4)), np.zeros((2, 3, 4)))
        self.assertAllEqual(PerExpert("ones")((2, 3, 4)), np.ones((2, 3, 4)))
        self.assertAllEqual(PerExpert(keras.initializers.Constant(2.5), 1)((2, 3, 4)), np.full((2, 3, 4), 2.5))
        self.assertAllEqual(PerExpert("identity")((2, 3, 3)), np.stack([np.eye(3)] * 2))

    def test_a_function(self):
        value = PerExpert(lambda shape, dtype=None: tf.fill(shape, float(len(shape))))((2, 3, 4))
        self.assertAllEqual(value, np.full((2, 3, 4), 2.0))

    def test_dtype(self):
        for name in ("glorot_uniform", "random_normal", "orthogonal", "zeros"):
            for dtype in ("float32", "float64"):
                self.assertEqual(PerExpert(name)((2, 3, 4), dtype=dtype).dtype, dtype)
        for name in ("glorot_uniform", "zeros"):
            self.assertEqual(PerExpert(name)((2, 3, 4), dtype="bfloat16").dtype, tf.bfloat16)

    def test_config(self):
        config = PerExpert(keras.initializers.HeNormal(seed=4), stream=2)
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(config))
        self.assertIsInstance(again, PerExpert)
        self.assertEqual(again.stream, 2)
        self.assertIsInstance(again.initializer, keras.initializers.HeNormal)
        self.assertAllEqual(again((3, 4, 5)), config((3, 4, 5)))
        by_name = keras.initializers.deserialize(keras.initializers.serialize(PerExpert("zeros")))
        self.assertAllEqual(by_name((1, 2, 2)), np.zeros((1, 2, 2)))

    def test_unknown_raises(self):
        with self.assertRaises(ValueError):
            PerExpert("no such initializer")


class OfStreamTest(TestCase):
    def test_seeds_are_those_of_stacked_weights(self):
        initializer = keras.initializers.GlorotUniform(seed=3)
        values = [of_stream(initializer, stream)((4, 5)) for stream in range(3)]
        for stream, value in enumerate(values):
            self.assertAllClose(value, PerExpert(initializer, stream)((1, 4, 5))[0], rtol=1e-6)
        self.assertNotAllClose(values[1], values[2])
        self.assertAllEqual(of_stream(initializer, 1)((4, 5)), values[1])

    def test_without_a_seed_it_never_repeats_itself(self):
        initializer = keras.initializers.GlorotUniform()
        one, other = (of_stream(initializer, 1)((4, 5)) for _ in range(2))
        self.assertNotAllClose(one, other)

    def test_what_has_no_seed(self):
        def threes(shape, dtype=None):
            return np.full(shape, 3.0)

        for initializer, value in (("ones", 1), (keras.initializers.Constant(2), 2), (threes, 3)):
            self.assertAllEqual(of_stream(initializer, 1)((4,)), [value] * 4)
