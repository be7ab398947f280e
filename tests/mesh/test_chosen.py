import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.mesh.helpers import Program, strategy_on
from tf_moe.mesh import chosen

T, E, K = 8, 5, 3


class ChoiceTest(TestCase):
    def test_as_on_one_device(self):
        def on_mesh(x, index, d_values, d_read):
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(x)
                values, best = chosen.top_k(x, K)
                read = chosen.read_at(x, index)
            d_top, d_x = tape.gradient(values, x, d_values), tape.gradient(read, x, d_read)
            return values, best, d_top, read, d_x, chosen.add_at(d_values, index, E)

        def on_one_device(x, index, d_values, d_read):
            x = tf.constant(x)
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(x)
                values, best = tf.math.top_k(x, K)
                read = tf.gather(x, index, batch_dims=1)
            added = np.zeros((T, E))
            for t, k in np.ndindex(T, K):
                added[t, index[t, k]] += d_values[t, k]
            d_x = tf.convert_to_tensor(tape.gradient(read, x, d_read))
            return values, best, tape.gradient(values, x, d_values), read, d_x, added

        x = self.normal(T, E)
        x[0] = 1.0  # all equal
        index = self.rng.integers(0, E, (T, K)).astype("int32")  # some twice in a row
        arrays = x, index, self.normal(T, K), self.normal(T, K)
        program = Program(strategy_on(2), on_mesh)
        for ours, expected in zip(program(*arrays), on_one_device(*arrays), strict=True):
            self.assertAllClose(ours, expected)
        self.assertEqual(program.specs, [["expert", ""]] * 6)  # nothing was collected, the gradients least of all
