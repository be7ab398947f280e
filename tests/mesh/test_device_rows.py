import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.mesh.helpers import Program, strategy_on
from tf_moe.mesh.device_rows import gather_or_zero, sum_rows, take_rows

I, K, D = 5, 2, 3  # noqa: E741
DEVICES = (2, 2)


class RowsTest(TestCase):
    """On a mesh of two by two."""

    def setUp(self):
        super().setUp()
        self.strategy = strategy_on(4, 2)
        # On each device a random matching of the I * K assignments with the rows of the buffer, some without.
        rows = I * K + 2
        self.source = np.full((*DEVICES, rows), I * K)
        self.slot = np.full((*DEVICES, I, K), -1)
        for n in np.ndindex(*DEVICES):
            for a, row in enumerate(self.rng.permutation(rows)[: I * K]):
                if self.rng.random() < 0.8:
                    self.source[n][row], self.slot[n][a // K, a % K] = a, row
        self.source, self.slot = self.source.astype("int32"), self.slot.astype("int32")

    def run_laid_out(self, function, *arrays):
        """Results, of which every one must be split over all devices."""
        program = Program(self.strategy, lambda *x: function(*[self.strategy.shards.relayout_tokens(t) for t in x]))
        results = program(*arrays)
        for specs in program.specs:
            self.assertEqual(specs[:2], ["expert", "replica"])
        return results

    def test_gather_or_zero(self):
        x, index = self.normal(*DEVICES, I, D), self.rng.integers(-2, I + 2, (*DEVICES, 4, 3)).astype("int32")
        got, scalars = self.run_laid_out(
            lambda x, index: (gather_or_zero(x, index), gather_or_zero(x[..., 0], index)), x, index
        )
        for place in np.ndindex(index.shape):
            i = index[place]
            expected = x[place[:2]][i] if 0 <= i < I else np.zeros(D)
            self.assertAllEqual(got[place], expected)
            self.assertEqual(scalars[place], expected[0])

    def test_take_rows(self):
        x, upstream = self.normal(*DEVICES, I, D), self.normal(*DEVICES, I * K + 2, D)

        def function(x, source, slot, upstream):
            with tf.GradientTape() as tape:
                tape.watch(x)
                taken = take_rows(x, tf.where(source < I * K, tf.math.floordiv(source, K), -1), slot)
            return taken, tape.gradient(taken, x, upstream)

        taken, gradient = self.run_laid_out(function, x, self.source, self.slot, upstream)
        expected, d_x = np.zeros_like(upstream), np.zeros_like(x)
        for n in np.ndindex(*DEVICES):
            for row, a in enumerate(self.source[n]):
                if a < I * K:
                    expected[n][row] = x[n][a // K]
                    d_x[n][a // K] += upstream[n][row]
        self.assertAllEqual(taken, expected)
        self.assertAllClose(gradient, d_x)

    def test_sum_rows(self):
        for dtype, close in ((tf.float32, 1e-5), (tf.bfloat16, 0.1)):

            def function(rows, weights, source, slot, upstream, dtype=dtype):
                rows = tf.cast(rows, dtype)
                with tf.GradientTape() as tape:
                    tape.watch([rows, weights])
                    total = sum_rows(rows, weights, source, slot)
                d_rows, d_weights = tape.gradient(total, [rows, weights], upstream)
                self.assertEqual((total.dtype, d_rows.dtype, d_weights.dtype), (tf.float32, dtype, tf.float32))
                return total, tf.cast(d_rows, tf.float32), d_weights

            rows, weights = self.normal(*DEVICES, I * K + 2, D), self.normal(*DEVICES, I, K)
            upstream = self.normal(*DEVICES, I, D)
            results = self.run_laid_out(function, rows, weights, self.source, self.slot, upstream)
            total, d_rows, d_weights = np.zeros_like(upstream), np.zeros_like(rows), np.zeros_like(weights)
            for n in np.ndindex(*DEVICES):
                for i, k in np.ndindex(I, K):
                    row = self.slot[n][i, k]
                    if row >= 0:
                        total[n][i] += weights[n][i, k] * rows[n][row]
                        d_rows[n][row] += weights[n][i, k] * upstream[n][i]
                        d_weights[n][i, k] = rows[n][row] @ upstream[n][i]
            for got, expected in zip(results, (total, d_rows, d_weights), strict=True):
                self.assertAllClose(got, expected, rtol=close, atol=close)
