"""What has to be done so that one process can compile more than one DTensor program with loops.

DTensor 2.21 turns every loop of a program into functions, which it adds to those of all programs before. Two things go
wrong, both with "Cannot add function ... because a different function with the same name already exists":

- The functions get the name of the loop, so that equal scopes in two programs, such as those of the same layer at
  training and at evaluation, collide. Hence a scope for each program.
- DTensor remembers the names by the addresses of the loops in memory, and keeps them when a program has been compiled
  and its memory is free again. A loop of the next program that comes to lie at such an address gets the old name.
  (RegionControlFlowToFunctionalPass holds an OpOrArgLocNameMapper for as long as the device lives.) Hence memory that
  is taken, in blocks of the sizes that such objects have, and never given back: the new program lies elsewhere.

`tests/distribute/test_programs.py` tells when this is no longer needed.
"""

import contextlib
import ctypes
import itertools

import tensorflow as tf
from tensorflow.python.eager import context

# 20 MB for each program; of less, programs of several loops did not get enough.
_BLOCKS_OF_A_SIZE, _SIZES = 40, range(4096, 64, -16)

_program = itertools.count()
_loops_so_far = 0  # when memory was last taken


def new_program() -> contextlib.AbstractContextManager:
    """A name scope for a program that is about to be traced, which can then be compiled beside the others.

    An eager step is no such program, but may call a `tf.function`, which is. To take memory in each would fill it; so
    it is taken where loops have been compiled since it was last.
    """
    global _loops_so_far
    loops = _compiled_loops()
    if loops != _loops_so_far or not tf.executing_eagerly():
        _loops_so_far = loops
        _take_freed_memory()
    return tf.name_scope(f"mesh_program_{next(_program)}")


def _compiled_loops():
    """How many functions DTensor has made of loops. Those that `tf.function` makes have a number at the end."""
    return sum(name.endswith("_body") for name in context.context().list_function_names())


def _take_freed_memory():
    allocate = ctypes.CDLL(None).malloc
    allocate.restype, allocate.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    for size in _SIZES:
        for _ in range(_BLOCKS_OF_A_SIZE):
            allocate(size)
