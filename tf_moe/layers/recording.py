"""Looking at what the gates inside of a model decide, whatever the model is made of."""

import contextlib
import contextvars
from collections.abc import Iterator

import keras

from tf_moe.gates.routing import Routing

_records: contextvars.ContextVar[list[tuple[keras.layers.Layer, Routing]] | None] = contextvars.ContextVar(
    "records", default=None
)


@contextlib.contextmanager
def record_routings() -> Iterator[list[tuple[keras.layers.Layer, Routing]]]:
    """Inside, every call of a `SparseMoE` adds itself and its `Routing` to the list.

    The model may be of any kind, and in a `tf.function`, whose tensors these are then: return what is wanted of them.
    Of a layer called inside of a loop or a branch of the graph the tensors cannot be taken out. What was traced before,
    as `model.predict` is by its first call, adds nothing; nor do replicas of MirroredStrategy, which are other threads.

    Example:

    >>> with tf_moe.layers.record_routings() as routings:
    ...     logits = model(tokens)
    >>> [(layer.name, routing.load.shape) for layer, routing in routings]
    [('moe', TensorShape([8]))]
    """
    token = _records.set([])
    try:
        yield _records.get()
    finally:
        _records.reset(token)


def record(layer: keras.layers.Layer, routing: Routing) -> None:
    """Add to the list of `record_routings`, if there is one."""
    records = _records.get()
    if records is not None:
        records.append((layer, routing))
