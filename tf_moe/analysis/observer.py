"""What the gates of a model decide about batches. All of the analysis runs models here, and nowhere else."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import keras
import numpy as np
import tensorflow as tf

from tf_moe import checks
from tf_moe.dispatch import capacity_of
from tf_moe.layers import SparseMoE, record_routings
from tf_moe.mesh.shards import shards_of


class Decisions(NamedTuple):
    """What one layer decided about a batch. Several calls of a layer by its model follow one another.

    A choice with zero weight is none; all choices of a masked position are such.

    Attributes:
        layer: The layer.
        expert_index: Int32 `(T, K)`.
        gate: Float32 `(T, K)`, the gate values.
        dropped: Choices that the experts' capacity had no room for.
        calls: Of each call, for how many of the T positions it was.
    """

    layer: SparseMoE
    expert_index: np.ndarray
    gate: np.ndarray
    dropped: int
    calls: Sequence[int]

    @property
    def chosen(self) -> np.ndarray:
        """Bool `(T, K)`, which choices have an expert."""
        return self.gate > 0

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values `(N,)` of rows, or of parts of them, for all positions `(T,)`: every call goes through the rows."""
        return np.concatenate([np.repeat(values, call // max(len(values), 1)) for call in self.calls])


class Observer:
    """Calls a model at evaluation and returns what its gates decided, by the name of the layer.

    The model is traced at most twice, whatever the batches, so that a callback may look often. It is left as it was:
    its metrics, so that what is shown of a training is of the training, and whatever else a call may change.

    Args:
        model: Any built Keras model on one device, layers inside of layers too.

    Raises:
        ValueError: If the model is not built, or on a mesh; when called, if two of its layers have one name.
        TypeError: If `model` is no `keras.Model`.
    """

    def __init__(self, model: keras.Model):
        checks.built_model(model)
        if any(shards_of(variable) for variable in model.variables):
            raise ValueError(
                f"Gates cannot be looked at on a mesh. Received: {model.name!r}, whose weights are on one. Save it, "
                "and load it on one device."
            )
        self.model = model
        self._layers: dict[str, SparseMoE] = {}
        self._route = tf.function(self._trace, reduce_retracing=True, autograph=False)

    def __call__(self, batch: Any) -> dict[str, Decisions]:
        """The decisions about a batch, in the order of the layers' first calls."""
        names, routed = self._route(inputs_of(batch))
        routed = dict(zip((name.decode() for name in names.numpy()), routed, strict=True))
        return {
            name: Decisions(self._layers[name], index.numpy(), gate.numpy(), int(dropped), calls.numpy().tolist())
            for name, (index, gate, dropped, calls) in routed.items()
        }

    def _trace(self, inputs):
        state = _state_of(self.model)
        before = [tf.identity(variable.value) for variable in state]
        with record_routings() as routings:
            self.model(inputs, training=False)
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)
        calls: dict[str, list] = {}
        for layer, routing in routings:
            if (other := self._layers.setdefault(layer.name, layer)) is not layer:
                raise ValueError(
                    f"Layers must have names of their own. Received: two of the name {layer.name!r}, {other.path!r} "
                    f"and {layer.path!r}."
                )
            parts = routing.expert_index, routing.combine_weights, _dropped(layer, routing)
            calls.setdefault(layer.name, []).append(parts)
        joined = [
            (tf.concat(index, 0), tf.concat(gate, 0), tf.add_n(dropped), tf.stack([tf.shape(one)[0] for one in index]))
            for index, gate, dropped in (zip(*parts, strict=True) for parts in calls.values())
        ]
        return tf.constant(list(calls), tf.string), joined  # a dictionary would come back sorted


def _state_of(model: keras.Model) -> list[keras.Variable]:
    """What a call at evaluation may change: metrics, seeds, which an LSTM with dropout moves on, and states of RNNs."""
    layers = model._flatten_layers()
    recurrent = [layer for layer in layers if isinstance(layer, keras.layers.RNN) and layer.stateful]
    states = keras.tree.flatten([layer.states for layer in recurrent])  # which Keras has in none of its lists
    weights = {id(weight) for weight in model.weights}
    seeds = [variable for variable in model.variables if id(variable) not in weights]
    # Made so: what was frozen nothing changes, and it may be large.
    not_trained = [variable for layer in layers for variable in layer._non_trainable_variables]
    return [*model.metrics_variables, *seeds, *not_trained, *states]


def _dropped(layer: SparseMoE, routing) -> tf.Tensor:
    if layer.capacity_factor is None:
        return tf.constant(0.0)
    tokens = tf.shape(routing.expert_index)[0]
    capacity = capacity_of(tokens, layer.total_experts, layer.total_k, layer.capacity_factor)
    return tf.reduce_sum(tf.nn.relu(routing.load - tf.cast(capacity, tf.float32)))


def check_batches(batches: Iterable, again: bool = False) -> None:
    """Raise ValueError for one batch in place of many; and where they are needed again, for what can be had once.

    A batch could be gone through as well: of a tuple the targets would count as inputs, of an array its rows.
    """
    if isinstance(batches, tuple):
        raise ValueError("batches must be a list or dataset of batches. Received: a tuple. Pass [(x, y)].")
    if isinstance(batches, dict):
        raise ValueError(
            f"batches must be a list or dataset of batches. Received: a dict of {sorted(batches)}. Pass [inputs]."
        )
    if hasattr(batches, "shape"):
        raise ValueError(
            f"batches must be a list or dataset of batches. Received: an array of shape {batches.shape}. Pass [x]."
        )
    if again and iter(batches) is batches:
        raise ValueError(
            f"batches must be a list or a dataset, to be gone through at every look. Received: batches={batches!r}."
        )


class Batch:
    """What a model was called with, and what functions say of it, each asked once.

    The tallies of all layers share it: a function may count its calls, or take what it says from elsewhere.
    """

    def __init__(self, inputs: Any):
        self.inputs = inputs
        self._values: dict[int, Any] = {}

    def values(self, of: Callable[[Any], Any]) -> Any:
        """What a function says of the inputs. It has to live as long as the batch."""
        if id(of) not in self._values:
            self._values[id(of)] = of(self.inputs)
        return self._values[id(of)]


class Tally(Protocol):
    """A sum over batches of what one layer decided."""

    def add(self, decisions: Decisions, batch: Batch) -> None:
        """Count what was decided about one batch."""


AnyTally = TypeVar("AnyTally", bound=Tally)


def tally(
    observer: Observer, batches: Iterable, new: Callable[[SparseMoE], AnyTally], layers: Sequence[str] | None = None
) -> dict[str, AnyTally]:
    """One pass over the batches, with a tally for each layer; or for some, by their names.

    Raises:
        ValueError: If the model does not call one of these, or no layer, or there is no batch, or one in place of many.
    """
    check_batches(batches)
    if layers is not None and not layers:
        raise ValueError(f"layers must name one or more, or be None for all. Received: layers={layers!r}.")
    tallies: dict[str, AnyTally] = {}
    found = None
    for batch in batches:
        found, shared = observer(batch), Batch(inputs_of(batch))
        for name in found if layers is None else layers:
            if name not in found:
                raise ValueError(
                    f"layer must be one of the model, which calls {list(found)}. Received: layer={name!r}."
                )
            if name not in tallies:
                tallies[name] = new(found[name].layer)
            tallies[name].add(found[name], shared)
    if not tallies:
        model = observer.model
        when = "as there was no batch" if found is None else "on any batch"
        raise ValueError(f"No SparseMoE layer was called {when}. Received: {model.name!r} with layers {model.layers}.")
    return tallies


def inputs_of(batch):
    """What the model is called with; of tuples or lists as `fit` takes them, the first part."""
    return batch[0] if isinstance(batch, (list, tuple)) else batch
