import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.ops.rows import gather_or_none, gather_or_zero, sum_rows, take_rows

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
BFLOAT16 = {"rtol": 2e-2, "atol": 5e-2}


class RowsTest(TestCase):
    """T tokens, K slots a token, S rows of the buffer, D width."""

    def movement(self, T=5, K=3, S=12):
        """Assignments scattered over a buffer: (S,) assignment and (T, K) slot, inverse to one another.

        About a third of the assignments have no row; what stands for none is outside the range in several ways.
        """
        assignment = self.rng.choice([-1, -7, T * K, T * K + 5], S)
        slot = self.rng.choice([-1, -9, S, S + 4], T * K)
        moved = 2 * T * K // 3
        places = self.rng.permutation(S)[:moved]
        chosen = self.rng.permutation(T * K)[:moved]
        assignment[places], slot[chosen] = chosen, places
        return assignment.astype("int32"), slot.reshape(T, K).astype("int32")

    def test_take_rows(self):
        T, K, S, D = 5, 3, 12, 4
        assignment, slot = self.movement(T, K, S)
        source = np.where(assignment < 0, assignment, assignment // K)  # T*K // K is T: still outside
        x, d_buffer = self.normal(T, D), self.normal(S, D)
        buffer, d_x = np.zeros((S, D)), np.zeros((T, D))
        for s in range(S):
            if 0 <= source[s] < T:
                buffer[s] = x[source[s]]
                d_x[source[s]] += d_buffer[s]
        for dtype, close in ((tf.float32, CLOSE), (tf.bfloat16, BFLOAT16)):
            with self.subTest(dtype=dtype.name):
                tokens = tf.cast(x, dtype)
                with tf.GradientTape() as tape:
                    tape.watch(tokens)
                    taken = take_rows(tokens, tf.constant(source), tf.constant(slot))
                gradient = tape.gradient(taken, tokens, tf.cast(d_buffer, dtype))
                self.assertEqual((taken.dtype, gradient.dtype), (dtype, dtype))
                self.assertAllClose(taken, buffer, **close)
                self.assertAllClose(gradient, d_x, **close)

    def test_sum_rows(self):
        T, K, S, D = 5, 3, 12, 4
        assignment, slot = self.movement(T, K, S)
        buffer, weights, d_y = self.normal(S, D), self.normal(T, K), self.normal(T, D)
        y, d_buffer, d_weights = np.zeros((T, D)), np.zeros((S, D)), np.zeros((T, K))
        for t in range(T):
            for k in range(K):
                if 0 <= slot[t, k] < S:
                    y[t] += weights[t, k].astype("float64") * buffer[slot[t, k]]
                    d_buffer[slot[t, k]] += weights[t, k].astype("float64") * d_y[t]
                    d_weights[t, k] = np.dot(d_y[t].astype("float64"), buffer[slot[t, k]])
        for dtype, close in ((tf.float32, CLOSE), (tf.bfloat16, BFLOAT16)):
            with self.subTest(dtype=dtype.name):
                inputs = [tf.cast(buffer, dtype), tf.constant(weights)]
                with tf.GradientTape() as tape:
                    tape.watch(inputs)
                    summed = sum_rows(*inputs, tf.constant(assignment), tf.constant(slot))
                gradients = tape.gradient(summed, inputs, tf.constant(d_y))
                self.assertEqual(summed.dtype, tf.float32)  # the sum is in float32 whatever the buffer is in
                self.assertEqual([g.dtype for g in gradients], [dtype, tf.float32])
                self.assertAllClose(summed, y, **close)
                self.assertAllClose(gradients[0], d_buffer, **close)
                self.assertAllClose(gradients[1], d_weights, **(CLOSE if dtype == tf.float32 else {"atol": 0.1}))

    def test_gradients_are_gathers(self):
        assignment, slot = self.movement()
        source = np.where(assignment < 0, -1, assignment // slot.shape[1])

        def gradient_of(function, *arguments):
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                loss = tf.reduce_sum(tf.sin(function(*arguments)))
            return [tf.convert_to_tensor(d) for d in tape.gradient(loss, arguments)]

        def take(x):
            return gradient_of(lambda x: take_rows(x, tf.constant(source), tf.constant(slot)), x)

        def combine(buffer, weights):
            return gradient_of(lambda b, w: sum_rows(b, w, tf.constant(assignment), tf.constant(slot)), buffer, weights)

        def gather(x):  # what it would be without
            return gradient_of(lambda x: tf.gather(x, tf.constant(source)), x)

        self.assertEqual(scatters(take, self.normal(5, 4)), set())
        self.assertEqual(scatters(combine, self.normal(12, 4), self.normal(5, 3)), set())
        self.assertNotEqual(scatters(gather, self.normal(5, 4)), set())

    def test_a_row_that_is_not_read_has_no_influence(self):
        # Rows 1 of x and 2 of the buffer are NaN, and so are the gradients that arrive at rows nobody fills or reads.
        x = tf.constant([[1.0], [np.nan], [3.0]])
        source, slot = tf.constant([2, -1, 0]), tf.constant([[2], [-1], [0]])
        with tf.GradientTape() as tape:
            tape.watch(x)
            buffer = take_rows(x, source, slot)
        self.assertAllEqual(buffer, [[3.0], [0.0], [1.0]])
        self.assertAllEqual(tape.gradient(buffer, x, tf.constant([[10.0], [np.nan], [20.0]])), [[20.0], [0.0], [10.0]])

        inputs = [tf.constant([[5.0], [7.0], [np.nan]]), tf.constant([[2.0], [4.0], [1.0]])]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = sum_rows(*inputs, tf.constant([1, 0, -1]), tf.constant([[1], [0], [-1]]))
        self.assertAllEqual(y, [[14.0], [20.0], [0.0]])
        d_buffer, d_weights = tape.gradient(y, inputs, tf.constant([[1.0], [10.0], [np.nan]]))
        self.assertAllEqual(d_buffer, [[40.0], [2.0], [0.0]])
        self.assertAllEqual(d_weights[:2], [[7.0], [50.0]])

    def test_gather_or_zero_of_any_rank(self):
        x = self.normal(4, 2, 3)
        index = np.array([[3, -1], [4, 0]], "int32")
        expected = np.stack([np.stack([x[3], 0 * x[0]]), np.stack([0 * x[0], x[0]])])
        for jit in (None, True):
            self.assertAllEqual(tf.function(gather_or_zero, jit_compile=jit)(x, index), expected)
        self.assertAllEqual(gather_or_zero(tf.range(3) + 5, tf.constant([2, 7])), [7, 0])

    def test_gather_or_none(self):
        self.assertAllEqual(gather_or_none(tf.range(3) + 5, tf.constant([2, -1, 0])), [7, -1, 5])

    def test_gather_or_zero_from_nothing(self):
        # A batch that is masked from end to end has a buffer of no rows.
        nothing, index = tf.zeros([0, 2]), tf.constant([[-1], [0], [5]])
        for name, gather in {
            "xla": tf.function(gather_or_zero, jit_compile=True),
            "graph": tf.function(gather_or_zero),
            "eager": gather_or_zero,
        }.items():
            with self.subTest(name):
                self.assertAllEqual(gather(nothing, index), np.zeros((3, 1, 2)))

    def test_sum_rows_of_an_empty_buffer(self):
        inputs = [tf.zeros([0, 2]), tf.zeros([3, 1])]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = sum_rows(*inputs, tf.zeros([0], tf.int32), tf.fill([3, 1], -1))
        self.assertAllEqual(y, np.zeros((3, 2)))
        d_buffer, d_weights = tape.gradient(y, inputs, tf.ones([3, 2]))
        self.assertAllEqual(d_buffer, np.zeros((0, 2)))
        self.assertAllEqual(d_weights, np.zeros((3, 1)))


def scatters(function, *arguments) -> set[str]:
    """The names of the operations in a function's graph that add or put rows anywhere."""
    graph = tf.function(function).get_concrete_function(*map(tf.constant, arguments)).graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    return {node.op for node in nodes if "Scatter" in node.op or "Segment" in node.op}
