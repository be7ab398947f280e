"""Operations that DTensor cannot split, told of before DTensor does in its own words."""

from collections.abc import Iterator

import tensorflow as tf

# How the types of such operations begin: what makes them, and what to do instead.
_UNSUPPORTED = {
    ("TensorList",): (
        "a loop that keeps a list of tensors, as keras.layers.LSTM, GRU, RNN, tf.map_fn and tf.TensorArray do",
        "Use tf_moe.layers.LSTM, or unroll=True with short sequences.",
    ),
    ("RandomStandardNormal", "RandomUniform", "TruncatedNormal", "RandomShuffle"): (
        "random numbers with a state of their own",
        "Use keras.random with a keras.random.SeedGenerator, or tf.random.stateless_*.",
    ),
    ("Reverse",): (
        "the reversal of an axis, as keras.layers.Bidirectional, tf.reverse and keras.ops.flip make it",
        "Use two tf_moe.layers.LSTM, one with go_backwards=True, and reverse what it returns by "
        "tf.stack(tf.unstack(x, axis=1)[::-1], axis=1).",
    ),
    ("LowerBound", "UpperBound", "Where", "Unique", "EagerPyFunc", "PyFunc", "SparseTensorDense", "Ragged"): (
        "an operation whose shape depends on the data, or that runs outside of the program",
        "Do it in the dataset's map, or with operations of static shape.",
    ),
}


def check_supported(graph: tf.Graph) -> None:
    """Raise ValueError for an operation that DTensor cannot split, also in loops, branches and called functions."""
    for kind, name in _operations(graph):
        for types, (what, remedy) in _UNSUPPORTED.items():
            if kind.startswith(types):
                raise ValueError(
                    f"ExpertParallelStrategy cannot split {what}. Received: operation {kind}, made by "
                    f"{_layer_of(name)!r}. {remedy}"
                )


def _operations(graph: tf.Graph) -> Iterator[tuple[str, str]]:
    """Types and names of the operations of a graph, and then of the functions that it has."""
    for operation in graph.get_operations():
        yield operation.type, operation.name
    for function in graph.as_graph_def().library.function:
        for node in function.node_def:
            yield node.op, node.name


def _layer_of(name: str) -> str:
    """The scopes around an operation: the layers, without the program's number, which called functions do not have."""
    return "/".join(part for part in name.split("/")[:-1] if not part.startswith("mesh_program_")) or name
