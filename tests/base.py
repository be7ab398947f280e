"""The base class of every test: fresh random inputs that the failure message lets one repeat."""

import gc
import itertools
import os

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

# Before anything else runs TensorFlow: the devices of tests on a mesh. Everything else runs on the first.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 8
)


_torn_down = itertools.count()


class TestCase(parameterized.TestCase, tf.test.TestCase):
    """tf.test.TestCase reseeds TensorFlow; this adds a NumPy generator with a fresh seed each run.

    `TEST_SEED=n python -m pytest ...` repeats a run; the seed is printed when a test fails.
    """

    def setUp(self):
        super().setUp()
        seed = int(os.environ.get("TEST_SEED", np.random.SeedSequence().entropy % 2**31))
        print(f"TEST_SEED={seed}")  # pytest shows it with a failure
        self.rng = np.random.default_rng(seed)
        keras.utils.set_random_seed(seed)

    def tearDown(self):
        if next(_torn_down) % 50 == 0:
            gc.unfreeze()  # what a test holds as its attributes is garbage only after this
        keras.backend.clear_session()  # collects garbage
        # What is still there is not: to search all of it after each test took a quarter of the time.
        gc.freeze()
        super().tearDown()

    def normal(self, *shape, dtype="float32"):
        """A standard normal array of the given shape, new in every run."""
        return self.rng.standard_normal(shape).astype(dtype)
