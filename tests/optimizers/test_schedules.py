import keras
import numpy as np

from tests.base import TestCase
from tf_moe.optimizers import WarmupInverseSqrt


class WarmupInverseSqrtTest(TestCase):
    def test_the_two_of_the_paper(self):
        language, translation = WarmupInverseSqrt(0.5, 1000), WarmupInverseSqrt(0.5, 2000, 8000)
        for step, expected in ((1, 0.0005), (500, 0.25), (1000, 0.5), (1001, 0.49975), (4000, 0.25), (100_000, 0.05)):
            self.assertAllClose(language(step - 1), expected, rtol=1e-4)
        for step, expected in ((1000, 0.25), (2000, 0.5), (10_000, 0.5), (40_000, 0.25)):
            self.assertAllClose(translation(step - 1), expected, rtol=1e-4)

    def test_defaults(self):
        """Of the paper's language models."""
        self.assertEqual(WarmupInverseSqrt(0.5).get_config(), WarmupInverseSqrt(0.5, 1000, 0).get_config())

    def test_has_no_jump(self):
        schedule = WarmupInverseSqrt(1.0, 10, 5)
        rates = np.array([float(schedule(step)) for step in range(60)])
        self.assertLess(np.abs(np.diff(rates)).max(), 0.1001)
        self.assertAllClose(rates.argmax(), 9)

    def test_in_an_optimizer_that_is_saved(self):
        optimizer = keras.optimizers.SGD(WarmupInverseSqrt(1.0, 4))
        config = keras.saving.serialize_keras_object(optimizer)
        optimizer = keras.saving.deserialize_keras_object(config)
        weight = keras.Variable(10.0)
        optimizer.build([weight])
        for _ in range(5):
            optimizer.apply([1.0], [weight])
        self.assertAllClose(weight, 10 - (0.25 + 0.5 + 0.75 + 1 + (4 / 5) ** 0.5))

    def test_what_cannot_be(self):
        for steps, received in (((0, 0), "warmup_steps=0"), ((1, -1), "constant_steps=-1")):
            with self.assertRaisesRegex(ValueError, received):
                WarmupInverseSqrt(1.0, *steps)
