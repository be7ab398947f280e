import tensorflow as tf

from tests import references
from tests.base import TestCase
from tf_moe.ops.chosen_probability import top_k_probability


class TopKProbabilityTest(TestCase):
    def test_any_leading_dimensions(self):
        clean, noise = self.normal(2, 3, 4), self.normal(2, 3, 4)
        stddev = self.rng.uniform(0.2, 2.0, (2, 3, 4)).astype("float32")
        noisy = clean + noise * stddev
        highest = tf.math.top_k(noisy, 3).values
        got = top_k_probability(clean, noisy, stddev, highest, 2)
        flat = [a.reshape(6, 4).astype("float64") for a in (clean, noisy, stddev)]
        self.assertAllClose(got, references.load_probabilities(*flat, 2).reshape(2, 3, 4), rtol=1e-4, atol=1e-5)
