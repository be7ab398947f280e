"""Which inputs an expert is for: those with its highest gate values, as in the paper's Table 9."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_moe import checks
from tf_moe.analysis.observer import Batch, Decisions, Observer, tally


class TopInput(NamedTuple):
    """One position of the inputs.

    Attributes:
        gate: The expert's gate value there.
        ids: Int `(T,)`, the ids of the whole row, padding included.
        position: Where in the row.

    Example:

    >>> top = tf_moe.analysis.TopInput(gate=0.9, ids=np.array([7, 8, 9]), position=1)
    >>> int(top.ids[top.position])
    8
    """

    gate: float
    ids: np.ndarray
    position: int


def top_inputs(
    model: keras.Model,
    batches: Iterable,
    layer: str,
    count: int = 10,
    ids_of: Callable[[Any], tf.Tensor] = lambda inputs: inputs,
) -> list[list[TopInput]]:
    """The inputs with the highest gate values of each expert of a layer, at evaluation.

    Args:
        model: Any Keras model.
        batches: Its inputs; of tuples or lists, as `fit` takes them, the first part is used. Several million positions
            will do: no more than `count` are kept for each expert.
        layer: Name of a SparseMoE layer of the model, called once, with a position for each id.
        count: Largest number of inputs for each expert. Default 10.
        ids_of: What finds the ids `(B, T)` that the layer's positions stand for in the model's inputs. Default: the
            inputs themselves. For the encoder of a `Translator`, `lambda inputs: inputs[0]`.

    Returns:
        For each expert a list of `TopInput`, the highest gate value first; shorter, where it had fewer tokens.

    Raises:
        ValueError: If the model is not built, calls no such layer, calls it several times, or not with a position for
            each id.
        TypeError: If `model` is no `keras.Model`.

    Example:

    >>> tops = tf_moe.analysis.top_inputs(model, dataset, "moe", count=3)
    >>> [int(top.ids[top.position]) for top in tops[0]]  # the words that expert 0 is for
    [...]

    Reference: table 9 of Shazeer et al. (2017).
    """
    count = checks.integer("count", count)
    tallies = tally(Observer(model), batches, lambda one: TopTally(one, count, ids_of), [layer])
    return tallies[layer].result()


class TopTally:
    """The highest gate values of each expert so far."""

    def __init__(self, layer, count: int, ids_of: Callable[[Any], tf.Tensor]):
        self._name, self._count, self._ids_of = layer.name, count, ids_of
        self._tops: list[list[TopInput]] = [[] for _ in range(layer.total_experts)]

    def add(self, decisions: Decisions, batch: Batch) -> None:
        ids = np.asarray(batch.values(self._ids_of))
        if ids.ndim != 2 or ids.size != len(decisions.gate):
            raise ValueError(
                f"ids_of must return the {len(decisions.gate)} ids of {self._name!r}'s positions, as (batch, time). "
                f"Received: ids of shape {ids.shape}."
            )
        for index, value, place in _highest(decisions.expert_index, decisions.gate, self._count):
            row, position = divmod(place, ids.shape[1])
            self._tops[index].append(TopInput(value, ids[row], position))
        tops = [sorted(top, key=lambda one: -one.gate)[: self._count] for top in self._tops]
        # Copies: a view would keep the whole batch.
        self._tops = [
            [one._replace(ids=one.ids.copy()) if one.ids.base is not None else one for one in top] for top in tops
        ]

    def result(self) -> list[list[TopInput]]:
        return self._tops


def _highest(expert, gate, count):
    """(expert, gate value, place) of the `count` highest gate values of each expert in a batch."""
    place = np.repeat(np.arange(len(expert)), expert.shape[1])
    expert, gate = expert.ravel(), gate.ravel()
    order = np.lexsort((-gate, expert))
    order = order[gate[order] > 0]
    _, starts = np.unique(expert[order], return_index=True)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    order = order[rank < count]
    return zip(expert[order].tolist(), gate[order].tolist(), place[order].tolist(), strict=True)
