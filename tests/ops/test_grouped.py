from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.base import TestCase
from tests.processes import run_python
from tests.text.files import new_folder
from tf_moe.ops import buffer_layout, grouped
from tf_moe.ops.buffer_layout import make_buffer_layout
from tf_moe.ops.grouped import apply_grouped
from tf_moe.ops.hot_groups import HotGroups
from tf_moe.ops.rows import take_rows

D, H, O = 3, 4, 2  # noqa: E741


def two_layers(x, first, bias, second):
    return tf.matmul(tf.tanh(tf.matmul(x, first) + tf.expand_dims(bias, 1)), second)


def by_rows(rows, counts, weights, d_output):
    """Output, and gradients to rows and weights, a row at a time in float64."""
    first, bias, second = (w.astype("float64") for w in weights)
    d_first, d_bias, d_second = (np.zeros_like(w) for w in (first, bias, second))
    output, d_rows = np.zeros((len(rows), O)), np.zeros((len(rows), D))
    for s, g in enumerate(np.repeat(np.arange(len(counts)), counts)):
        x, dy = rows[s].astype("float64"), d_output[s].astype("float64")
        hidden = np.tanh(x @ first[g] + bias[g])
        output[s] = hidden @ second[g]
        d_hidden = (second[g] @ dy) * (1 - hidden**2)
        d_second[g] += np.outer(hidden, dy)
        d_bias[g] += d_hidden
        d_first[g] += np.outer(x, d_hidden)
        d_rows[s] = first[g] @ d_hidden
    return output, d_rows, d_first, d_bias, d_second


def chosen(function, rows, counts, weights, recompute=False):
    """Sorted rows through the layout that the loads choose, and back."""
    size, groups = tf.shape(rows)[0], counts.shape[0]
    index = tf.repeat(tf.range(groups + 1), tf.concat([counts, [size - tf.reduce_sum(counts)]], 0))
    places = make_buffer_layout(tf.ensure_shape(tf.reshape(index, [size]), rows.shape[:1]), groups)
    rows = take_rows(rows, places.item, tf.expand_dims(places.row, -1))
    output = apply_grouped(function, rows, counts, weights, places.places, recompute)
    return take_rows(output, places.row, tf.expand_dims(places.item, -1))


def recomputed(function, rows, counts, weights):
    return chosen(function, rows, counts, weights, recompute=True)


def with_capacity(capacity_of):
    return mock.patch.object(buffer_layout, "cheapest_places", capacity_of)


def block_alone(function, rows, counts, weights):
    with with_capacity(tf.reduce_max):
        return recomputed(function, rows, counts, weights)


def loop_alone(function, rows, counts, weights):
    with with_capacity(lambda counts: tf.constant(0)):
        return chosen(function, rows, counts, weights)


def block_and_loop(function, rows, counts, weights):
    with with_capacity(lambda counts: 1 + tf.reduce_max(counts) // 3):
        return recomputed(function, rows, counts, weights)


def chunks(function, rows, counts, weights):
    """XLA's form, elsewhere."""
    return apply_grouped(function, rows, counts, weights)


WAYS = (chosen, recomputed, block_alone, loop_alone, block_and_loop, chunks)

# Four groups each. Where the counts sum to less than the rows, the last rows are of no group.
FOUR_GROUPS = {
    "even": ([6, 6, 6, 6], 24),
    "one group has all": ([0, 24, 0, 0], 24),
    "two are hot": ([12, 0, 11, 1], 24),
    "one row": ([0, 0, 1, 0], 24),
    "even, and rows of no group": ([2, 2, 2, 2], 24),
    "hot, and rows of no group": ([0, 0, 1, 20], 24),
}
OTHERS = {
    "many chunks": ([100, 0, 90, 5], 200),
    "one group": ([9], 9),
    "one group, and rows of no group": ([5], 9),
    "every group one row": ([1, 1, 1], 3),
    "two rows a group": ([2, 3, 1], 6),
}


def with_gradients(way):
    def run(rows, counts, weights, d_output):
        with tf.GradientTape() as tape:
            tape.watch([rows, *weights])
            output = way(two_layers, rows, counts, weights)
        return output, *tape.gradient(output, [rows, *weights], d_output)

    return run


def weight_gradient(rows, counts, weights, d_output):
    """Of one product, in chunks."""
    with tf.GradientTape() as tape:
        tape.watch(weights)
        output = chunks(tf.matmul, rows, counts, weights)
    return tape.gradient(output, weights, d_output)[0]


class GroupedTest(TestCase):
    """S rows, G groups, D width in, H hidden, O width out."""

    def weights(self, G):
        return [self.normal(G, D, H), self.normal(G, H), self.normal(G, H, O)]

    def check(self, run, counts, size, dtype=tf.float32, close=None):
        rows, weights, d_output = self.normal(size, D), self.weights(len(counts)), self.normal(size, O)
        # Rows of no group: whatever stands there, and whatever gradient comes, must not be seen anywhere.
        rows[sum(counts) :] = d_output[sum(counts) :] = np.nan
        inputs = [tf.cast(rows, dtype), [tf.cast(w, dtype) for w in weights], tf.cast(d_output, dtype)]
        rows, d_output = (tf.cast(t, tf.float32).numpy() for t in (inputs[0], inputs[2]))
        weights = [tf.cast(w, tf.float32).numpy() for w in inputs[1]]
        got = run(inputs[0], tf.constant(counts, tf.int32), inputs[1], inputs[2])
        names = ("output", "d_rows", "d_first", "d_bias", "d_second")
        for name, value, want in zip(names, got, by_rows(rows, counts, weights, d_output), strict=True):
            self.assertEqual(value.dtype, dtype)
            self.assertAllClose(value, want, msg=name, **(close or {"rtol": 1e-3, "atol": 1e-4}))

    def test_eager(self):
        for way in WAYS:
            for name, (counts, size) in {**FOUR_GROUPS, **OTHERS}.items():
                with self.subTest(name, way=way.__name__):
                    self.check(with_gradients(way), counts, size)

    def test_graph_traced_once_for_any_number_of_rows(self):
        def spec(*shape):
            return tf.TensorSpec(shape)

        signature = [
            spec(None, D),
            tf.TensorSpec([4], tf.int32),
            [spec(4, D, H), spec(4, H), spec(4, H, O)],
            spec(None, O),
        ]
        scenes = {**FOUR_GROUPS, "many chunks": OTHERS["many chunks"], "no rows": ([0, 0, 0, 0], 0)}
        for way in WAYS:
            run = tf.function(with_gradients(way), input_signature=signature)
            for name, (counts, size) in scenes.items():
                with self.subTest(name, way=way.__name__):
                    self.check(run, counts, size)
            self.assertEqual(run.experimental_get_tracing_count(), 1)
            outputs = run.get_concrete_function().structured_outputs
            self.assertEqual([t.shape.as_list() for t in outputs[:2]], [[None, O], [None, D]], way.__name__)

    def test_xla_recomputed_traced_once(self):
        run = tf.function(with_gradients(recomputed), jit_compile=True)
        for name, (counts, size) in FOUR_GROUPS.items():
            with self.subTest(name):
                self.check(run, counts, size)
        self.assertEqual(run.experimental_get_tracing_count(), 1)

    def test_xla_of_other_sizes(self):
        for name, (counts, size) in {
            "many chunks": OTHERS["many chunks"],
            "one group, and rows of no group": OTHERS["one group, and rows of no group"],
            "few rows": ([0, 1, 0, 0, 2, 0, 0, 0], 4),
            "no rows": ([0], 0),
        }.items():
            with self.subTest(name):
                self.check(tf.function(with_gradients(chosen), jit_compile=True), counts, size)

    def test_any_counts(self):
        """In a graph and under XLA, each traced once."""
        runs = [tf.function(with_gradients(chosen)), tf.function(with_gradients(chosen), jit_compile=True)]
        for name, (counts, size) in FOUR_GROUPS.items():
            with self.subTest(name):
                for run in runs:
                    self.check(run, counts, size)

        @settings(max_examples=12, deadline=None)
        @given(st.lists(st.integers(0, 24), min_size=4, max_size=4), st.integers(0, 23))
        def check(cuts, first):
            counts = np.diff([0, *sorted(cuts)])
            counts[first % 4] += sum(counts) == 0  # no row at all has a test of its own
            for run in runs:
                self.check(run, counts.tolist(), 24)

        check()
        self.assertEqual([run.experimental_get_tracing_count() for run in runs], [1] * len(runs))

    def test_no_rows(self):
        for way in WAYS:
            with self.subTest(way.__name__):
                self.check(with_gradients(way), [0, 0, 0], 0)

    def test_no_group_has_rows(self):
        # A batch whose every token is masked: with a buffer of many rows or of few it takes different branches.
        for size in (1, 12):
            for way in WAYS:
                with self.subTest(way.__name__, size=size):
                    self.check(with_gradients(way), [0, 0, 0], size)
            with self.subTest("graph", size=size):
                self.check(tf.function(with_gradients(chosen)), [0, 0, 0], size)
        with self.subTest("xla"):
            self.check(tf.function(with_gradients(chosen), jit_compile=True), [0, 0, 0], 12)

    def test_few_rows_and_many_groups(self):
        # A block would be mostly empty: it has no places, and the loop does everything.
        for way in WAYS:
            with self.subTest(way.__name__):
                self.check(with_gradients(way), [0, 1, 0, 0, 2, 0, 0, 0], 4)
        with self.subTest("chunks in a graph"):
            self.check(tf.function(with_gradients(chunks)), [0, 1, 0, 0, 2, 0, 0, 0], 4)

    def test_bfloat16(self):
        for name in ("even", "two are hot", "hot, and rows of no group"):
            counts, size = FOUR_GROUPS[name]
            for way in WAYS:
                with self.subTest(name, way=way.__name__):
                    self.check(with_gradients(way), counts, size, tf.bfloat16, {"rtol": 0.05, "atol": 0.4})

    def test_bfloat16_of_many_chunks(self):
        """Parts of one sign, all alike: in bfloat16 their sum would stop growing at 256 of them."""
        size, groups = 2816, 128  # a chunk of the hot group is 8 rows
        row, weights, d_row = self.normal(1, D), [self.normal(groups, D, O)], self.normal(1, O)
        counts, run = np.eye(groups, dtype="int32")[3] * size, tf.function(weight_gradient)
        inputs = [tf.cast(np.repeat(x, size, 0), "bfloat16") for x in (row, d_row)]
        weights = [tf.cast(w, "bfloat16") for w in weights]
        got = run(inputs[0], counts, weights, inputs[1])
        self.assertEqual(got.dtype, tf.bfloat16)
        rows, d_output = (tf.cast(x, "float32") for x in inputs)
        want = run(rows, counts, [tf.cast(w, "float32") for w in weights], d_output)
        self.assertAllClose(tf.cast(got, "float32"), want, rtol=2**-6)

    def test_even_loads_need_no_loop(self):
        for counts, loops in (([6, 6, 6, 6], False), ([24], False), ([0, 0, 0, 0], False), ([500, 2, 2, 2], True)):
            never = mock.patch.object(HotGroups, "_loop", side_effect=AssertionError("must not be called"))
            with self.subTest(counts=counts), never:
                if loops:
                    with self.assertRaises(AssertionError):
                        self.check(with_gradients(chosen), counts, sum(counts))
                else:
                    self.check(with_gradients(chosen), counts, sum(counts))

    def test_groups_without_rows_cost_nothing_beside_a_hot_one(self):
        seen = []

        def observed(x, w):
            seen.append(tuple(x.shape[:2]))
            return tf.matmul(x, w)

        chosen(observed, tf.ones([90, D]), tf.constant([0, 90, 0, 0, 0]), [tf.ones([5, D, O])])
        self.assertEqual([shape for shape in seen if 0 not in shape], [(1, 90)])

    def test_only_xla_gets_chunks(self):
        never = AssertionError("must not be called")
        with mock.patch.object(grouped, "Chunks", side_effect=never):
            for form in (with_gradients(chosen), tf.function(with_gradients(chosen))):
                self.check(form, [3, 3], 6)
            with self.assertRaises(AssertionError):
                self.check(tf.function(with_gradients(chosen), jit_compile=True), [3, 3], 6)

    @parameterized.parameters(chosen, apply_grouped)  # the second, of sorted rows, as under XLA
    def test_recompute_reaches_the_batched_product(self, apply):
        calls = []

        def counted(x, w):
            calls.append(x.shape)
            return tf.matmul(x, w)

        for recompute, expected in ((False, 1), (True, 2)):
            calls.clear()
            rows, weight = tf.ones([4, D]), tf.ones([2, D, O])
            with tf.GradientTape() as tape:
                tape.watch(weight)
                output = apply(counted, rows, tf.constant([2, 2]), [weight], recompute=recompute)
            tape.gradient(output, weight)
            self.assertLen(calls, expected)

    def test_a_weight_that_the_function_does_not_use(self):
        for way in WAYS:
            weights = [tf.constant(self.normal(2, D, O)), tf.ones([2, 5])]
            with tf.GradientTape() as tape:
                tape.watch(weights)
                output = way(lambda x, w, unused: tf.matmul(x, w), tf.ones([20, D]), tf.constant([19, 1]), weights)
            d_used, d_unused = tape.gradient(output, weights, unconnected_gradients="zero")
            self.assertAllClose(d_used, [np.full((D, O), 19.0), np.ones((D, O))])
            self.assertAllEqual(d_unused, np.zeros((2, 5)))

    def test_xla_compiles_once_for_all_loads(self):
        # XLA compiles again where a shape or another constant of the program follows from the loads. It writes every
        # program that it compiles to a folder, if asked before TensorFlow starts.
        script = """
import tensorflow as tf
from tf_moe.ops.grouped import apply_grouped

@tf.function(jit_compile=True)
def step(rows, counts, weight):
    with tf.GradientTape() as tape:
        tape.watch([rows, weight])
        output = apply_grouped(lambda x, w: tf.tanh(tf.matmul(x, w)), rows, counts, [weight])
    return tape.gradient(output, [rows, weight])

for counts in ([6, 6, 6, 6], [0, 24, 0, 0], [0, 0, 0, 0]):
    step(tf.ones([24, 3]), tf.constant(counts), tf.ones([4, 3, 2]))
step(tf.ones([25, 3]), tf.constant([25, 0, 0, 0]), tf.ones([4, 3, 2]))
"""
        folder = new_folder(self)
        run_python("-c", script, XLA_FLAGS=f"--xla_dump_to={folder} --xla_dump_hlo_as_text")
        programs = list(folder.glob("*inference_step*before_optimizations.txt"))
        self.assertLen(programs, 2)  # one for 24 rows, one for 25
