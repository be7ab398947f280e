"""What the devices of a mesh send one another in a step, read from the program that DTensor compiled.

DTensor turns a `tf.function` into functions of the eager context, a step being a function and those of its loops. The
only way to them is the private `tensorflow.python.eager.context`, used in `_new_functions`; and that collectives are
the operations in `_KINDS`, of static shapes, is so in TensorFlow 2.21. When either changes,
`tests/distribute/test_traffic.py` fails.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.eager import context

# CPUs have no all-gather: DTensor sums zeros into which every device has written its part.
_KINDS = {
    "CollectiveAllToAllV2": "all_to_all",
    "CollectiveReduceV2": "all_reduce",
    "CollectiveGatherV2": "all_gather",
    "CollectiveReduceScatterV2": "reduce_scatter",
}
_WRITES_ITS_PART = ("TensorStridedSliceUpdate", "XlaDynamicUpdateSlice")


class Collective(NamedTuple):
    """One collective operation of a compiled program, as one device sees it.

    Attributes:
        kind: "all_to_all", "all_reduce", "all_gather" or "reduce_scatter".
        shape: Shape of the whole: of what goes in, or for an all-gather, of what comes out.
        dtype: Type of the elements.
        devices: Number of devices that take part.
        in_loop: Whether it is in the body of a loop, so that it happens once a turn, perhaps never.
        as_reduce: Whether an all-gather is done by an all-reduce, as it is on CPUs, which sends twice as much.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: tf.DType
    devices: int
    in_loop: bool
    as_reduce: bool = False

    @property
    def bytes_sent(self) -> float:
        """Bytes that a device sends to others: a share (g-1)/g of the whole, twice that where a ring reduces."""
        whole = math.prod(self.shape) * self.dtype.size
        times = 2 if self.kind == "all_reduce" or self.as_reduce else 1
        return times * whole * (self.devices - 1) / self.devices


class Traffic(NamedTuple):
    """The collectives of the programs that were compiled in a call.

    Attributes:
        collectives: All of them; those in loops once.
    """

    collectives: tuple[Collective, ...]

    def bytes_sent(self, kind: str | None = None, in_loop: bool = False) -> float:
        """Bytes that a device sends to others.

        Args:
            kind: One kind of collective; None for all.
            in_loop: False for what every step sends; True for what one turn of each loop sends in addition.
        """
        chosen = [c for c in self.collectives if kind in (None, c.kind) and c.in_loop == in_loop]
        return sum(c.bytes_sent for c in chosen)


def measure_traffic(call: Callable[[], object]) -> Traffic:
    """Collectives of the programs that DTensor compiles in a call: of a step, if this is the first one.

    It counts what the program says, by shape, and times nothing. How often a loop turns is not known before it runs:
    its collectives count once, and apart (`Collective.in_loop`). The loop of hot experts in `SparseMoE` often does not
    turn at all.

    Args:
        call: Runs the step for the first time with this batch shape; in a cluster, in every process. A `tf.function`
            must outlive the call, or its program is gone when it is to be read.

    Returns:
        The collectives, as one device sees them.

    Raises:
        ValueError: If nothing was compiled in which devices send anything, as when the step had run before.

    Example:

    >>> from tf_moe.distribute.traffic import measure_traffic
    >>> with tf_moe.distribute.ExpertParallelStrategy().scope():  # over several devices
    ...     parallel = keras.models.clone_model(model)
    ...     parallel.compile("sgd", loss)
    >>> traffic = measure_traffic(lambda: parallel.train_on_batch(tokens[:, :-1], tokens[:, 1:]))
    >>> traffic.bytes_sent("all_to_all") > 0, traffic.bytes_sent("all_reduce") > 0
    (True, True)
    """
    functions = _new_functions(call)
    in_loops = _reached(functions, [name for f in functions.values() for n in f.node_def for name in _bodies(n)])
    found = [c for name, f in functions.items() for c in _collectives(f, name in in_loops)]
    if not found:
        raise ValueError(
            "The call left no new program in which devices send anything. Received: a step that ran before, or is for "
            "a single device, or a tf.function that ended with the call."
        )
    return Traffic(tuple(found))


def _new_functions(call: Callable[[], object]) -> dict:
    """FunctionDefs by name that the eager context has after the call and had not before."""
    functions = context.context()
    before = set(functions.list_function_names())
    call()
    return {name: functions.get_function_def(name) for name in functions.list_function_names() if name not in before}


def _collectives(function, in_loop: bool) -> list[Collective]:
    """The collectives among the operations of one FunctionDef."""
    nodes = {node.name: node for node in function.node_def}

    def read(node, index):
        """The node that makes an input, given as "name:output:0"."""
        return nodes.get(node.input[index].split(":")[0])

    found = []
    for node in function.node_def:
        if node.op not in _KINDS:
            continue
        kind, whole = _KINDS[node.op], [d.size for d in node.attr["_output_shapes"].list.shape[0].dim]
        devices = int(tf.make_ndarray(read(node, 1).attr["value"].tensor))
        source = read(node, 0)
        as_reduce = kind == "all_reduce" and source is not None and source.op in _WRITES_ITS_PART
        if kind == "reduce_scatter":
            whole = [devices, *whole]
        dtype = tf.as_dtype(node.attr["T"].type)
        kind = "all_gather" if as_reduce else kind
        found.append(Collective(kind, tuple(whole), dtype, devices, in_loop, as_reduce))
    return found


def _bodies(node) -> list[str]:
    """Names of the functions that a loop runs."""
    return [node.attr["body"].func.name, node.attr["cond"].func.name] if node.op.endswith("While") else []


def _reached(functions: dict, names: Iterable[str]) -> set[str]:
    """These functions and all that they call."""
    reached, left = set(), list(names)
    while left:
        name = left.pop()
        if name in reached or name not in functions:
            continue
        reached.add(name)
        left += [a.func.name for node in functions[name].node_def for a in node.attr.values() if a.func.name]
    return reached
