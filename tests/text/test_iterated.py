"""Datasets of iterators, beside those that TensorFlow makes of generators."""

import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.processes import run_python
from tf_moe.text import iterated as module
from tf_moe.text.iterated import iterated

LINES, LINE, NUMBERS = (
    tf.TensorSpec([None], tf.string),
    tf.TensorSpec([], tf.string),
    tf.TensorSpec([None, 2], tf.int32),
)

PROGRAM = """
import tensorflow as tf
from tf_moe.text.iterated import iterated
spec = tf.TensorSpec([], tf.int32)
begin = lambda: iter(range(3))
{make}
assert len(list(dataset)) == 3
"""


class IteratedTest(TestCase):
    def elements(self):
        sizes = self.rng.integers(0, 4, 5)
        return [
            ([f"{n}é" for n in range(size)], f"line {size}", self.rng.integers(-9, 9, (size, 2)).astype("int32"))
            for size in sizes
        ]

    def assert_same(self, found, expected):
        self.assertLen(found, len(expected))
        for ours, want in zip(found, expected, strict=True):
            for one, other in zip(tf.nest.flatten(ours), tf.nest.flatten(want), strict=True):
                self.assertEqual((one.dtype, one.shape), (other.dtype, other.shape))
                self.assertAllEqual(one, other)

    def test_is_what_from_generator_gives(self):
        """In every pass anew, of which two may be under way at once."""
        elements = self.elements()
        signature = (LINES, LINE, NUMBERS)
        ours = iterated(lambda: iter(elements), *signature)
        theirs = tf.data.Dataset.from_generator(lambda: iter(elements), output_signature=signature)
        self.assertEqual(ours.element_spec, theirs.element_spec)
        self.assert_same(list(ours), list(theirs))
        self.assert_same(
            list(tf.data.Dataset.zip(ours, ours.skip(2))), list(tf.data.Dataset.zip(theirs, theirs.skip(2)))
        )
        self.assert_same(list(ours.repeat(2)), list(theirs.repeat(2)))
        self.assertEmpty(list(iterated(lambda: iter([]), *signature)))

    def test_an_error_of_the_iterator(self):
        def begin():
            yield 1
            raise ValueError("line 7 of it")

        iterator = iter(iterated(begin, tf.TensorSpec([], tf.int32)))
        self.assertEqual(next(iterator), 1)
        with self.assertRaisesRegex(tf.errors.InvalidArgumentError, "line 7 of it"):
            next(iterator)

    def test_passes_that_are_left_are_forgotten(self):
        closed = []

        def begin():
            try:
                yield from range(1000)
            finally:
                closed.append(True)

        dataset = iterated(begin, tf.TensorSpec([], tf.int64))
        lasting = iter(dataset)
        for n in range(module._PASSES + 5):
            self.assertEqual(next(lasting), n)
            self.assertAllEqual(list(dataset.take(2)), [0, 1])
        self.assertLen(closed, 6)
        self.assertLen(list(lasting), 1000 - module._PASSES - 5)
        readers = [iter(dataset) for _ in range(module._PASSES + 1)]
        with self.assertRaisesRegex(tf.errors.OpError, "64 times at once"):
            [next(reader) for _ in range(9) for reader in readers]

    def test_any_number_of_threads(self):
        def read(_):
            return iterated(lambda: iter(range(50)), tf.TensorSpec([], tf.int64))

        dataset = tf.data.Dataset.range(6).interleave(read, cycle_length=3, num_parallel_calls=3)
        self.assertAllEqual(np.bincount([int(x) for x in dataset]), [6] * 50)

    def test_leaves_the_allocator_alone(self):
        """As `from_generator` does not: once it does, this module is no longer needed."""

        def log_of(make):
            return run_python("-c", PROGRAM.format(make=make), TF_CPP_MIN_LOG_LEVEL="0").stderr

        self.assertNotIn("M_TRIM_THRESHOLD", log_of("dataset = iterated(begin, spec)"))
        self.assertIn(
            "M_TRIM_THRESHOLD",
            log_of("dataset = tf.data.Dataset.from_generator(begin, output_signature=spec)"),
            "tf.data.Dataset.from_generator can be used again in the place of tf_moe/text/iterated.py.",
        )
