"""Operations that DTensor cannot split, told of before DTensor does in its own words."""

from collections.abc import Mapping

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
}

# The same of those that DTensor lets pass in a branch that it need not take, as optimizers of Keras have for sparse
# gradients.
_UNSUPPORTED_AT_THE_TOP = {
    ("LowerBound", "UpperBound", "Where", "Unique", "EagerPyFunc", "PyFunc", "SparseTensorDense", "Ragged"): (
        "an operation whose shape depends on the data, or that runs outside of the program",
        "Do it in the dataset's map, or with operations of static shape.",
    ),
}


def check_supported(graph: tf.Graph) -> None:
    """Raise ValueError for an operation that DTensor cannot split, also in loops, branches and called functions."""
    for operation in graph.get_operations():
        _check(operation.type, operation.name, _UNSUPPORTED | _UNSUPPORTED_AT_THE_TOP)
    for function in graph.as_graph_def().library.function:
        for node in function.node_def:
            _check(node.op, node.name, _UNSUPPORTED)


def _check(kind: str, name: str, unsupported: Mapping[tuple[str, ...], tuple[str, str]]) -> None:
    for types, (what, remedy) in unsupported.items():
        if kind.startswith(types):
            raise ValueError(
                f"ExpertParallelStrategy cannot split {what}. Received: operation {kind}, made by {_layer_of(name)!r}. "
                f"{remedy}"
            )


def _layer_of(name: str) -> str:
    """The scopes around an operation: the layers, without the program's number, which called functions do not have."""
    return "/".join(part for part in name.split("/")[:-1] if not part.startswith("mesh_program_")) or name
