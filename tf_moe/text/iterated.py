"""A dataset of what a Python iterator gives, as `tf.data.Dataset.from_generator` makes one."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

# Passes that are under way at a time. One that is left before its end, as by `validation_steps`, is never taken up
# again, and nobody says so: it is forgotten once so many others have gone on, and its files are closed.
_PASSES = 64


def iterated(begin: Callable[[], Iterator[Any]], *specs: tf.TensorSpec) -> tf.data.Dataset:
    """The elements of `begin()`, from the first in each pass over the dataset.

    Not `from_generator`: where one is first read, TensorFlow 2.21 sets a threshold of the C library's allocator (it
    logs a "memory patch"), and from then on every operation of the process asks the system for the memory of its
    output. `examples/benchmarks/generator.py` says what that costs; `tests/text/test_iterated.py`, when it is mended.

    Args:
        begin: Begins a pass: returns an iterator over elements, each an array or a string or a list of these, or a
            tuple of such parts.
        *specs: The shape and dtype of each part.

    Returns:
        A dataset of tensors, or of tuples of them where there are several parts; of unknown length.

    Raises:
        RuntimeError: When read, as `tf.errors.OpError`: more than 64 passes are under way at a time.
    """
    passes = _Passes(begin)
    # In the place of an element after the last. NumPy's zeros of strings are numbers.
    none = [
        np.full([size or 0 for size in spec.shape], b"" if spec.dtype == tf.string else 0, spec.dtype.as_numpy_dtype)
        for spec in specs
    ]

    def following(number):
        try:
            element = passes.following(int(number))
        except StopIteration:
            return [False, *none]
        return [True, *map(_as_array, specs, element if len(specs) > 1 else [element])]

    def elements(number):
        def read(_):
            more, *parts = tf.numpy_function(following, [number], [tf.bool, *(spec.dtype for spec in specs)])
            return tf.ensure_shape(more, []), *map(tf.ensure_shape, parts, [spec.shape for spec in specs])

        endless = tf.data.Dataset.range(np.iinfo(np.int64).max).map(read)
        until_the_last = endless.take_while(lambda more, *_: more)
        return until_the_last.map(lambda _, *parts: parts if len(specs) > 1 else parts[0])

    number = tf.data.Dataset.range(1).map(lambda _: tf.ensure_shape(tf.numpy_function(passes.begin, [], tf.int64), []))
    return number.flat_map(elements)


def _as_array(spec, value):
    if spec.dtype != tf.string:
        return np.asarray(value, spec.dtype.as_numpy_dtype)
    return np.array([line.encode("utf-8") for line in value] if spec.shape.rank else value.encode("utf-8"), object)


class _Passes:
    """The iterators of passes that are under way, by their numbers; the one that went on last is the last."""

    def __init__(self, begin):
        self._begin, self._lock, self._count = begin, threading.Lock(), 0
        self._iterators = OrderedDict()

    def begin(self):
        iterator = iter(self._begin())
        with self._lock:
            self._count += 1
            self._iterators[self._count] = iterator
            while len(self._iterators) > _PASSES:
                self._iterators.popitem(last=False)
            return np.int64(self._count)

    def following(self, number):
        with self._lock:
            if number not in self._iterators:
                raise RuntimeError(f"A dataset can be read {_PASSES} times at once. Received: one time more.")
            self._iterators.move_to_end(number)
            iterator = self._iterators[number]
        try:
            return next(iterator)
        except StopIteration:
            with self._lock:
                self._iterators.pop(number, None)
            raise
