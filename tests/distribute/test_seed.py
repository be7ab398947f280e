"""The seed of a script, and that to ask for it changes nothing."""

import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.distribute.seed import global_seed


class GlobalSeedTest(TestCase):
    def test_the_last_one_counts(self):
        seeds = [int(seed) for seed in self.rng.integers(0, 2**31, 2)]
        for set_seed, seed in zip((keras.utils.set_random_seed, tf.random.set_seed), seeds, strict=True):
            set_seed(seed)
            self.assertEqual(global_seed(), seed)
        tf.random.set_seed(None)
        self.assertIsNone(global_seed())

    def test_what_is_drawn_stays_the_same(self):
        drawn = []
        for asked in (False, True):
            keras.utils.set_random_seed(5)
            if asked:
                global_seed()
            drawn.append([tf.random.normal([3]), np.random.rand(3)])
        self.assertAllEqual(*drawn)
