"""How alike two models route: two checkpoints of one training, or two trainings."""

from collections.abc import Iterable
from typing import NamedTuple

import keras
import numpy as np

from tf_moe.analysis.co_activation import LARGEST_MATRIX, add_pairs
from tf_moe.analysis.information import LabelCounter
from tf_moe.analysis.matching import best_matching
from tf_moe.analysis.observer import Decisions, Observer, check_batches, inputs_of
from tf_moe.analysis.specialisation import GROUPS, Specialisation, check_resampling, specialisation


class Stability(NamedTuple):
    """How alike a layer of one model and its like in another choose experts for the same positions.

    Where the number of an expert means the same in both, as in two checkpoints of one training, `same_set` and
    `overlap` say it. Between trainings from other seeds it means nothing: there, `matched_overlap` counts experts as
    the same that the best one-to-one matching has paired, and `information` says how much the choice of one model tells
    of the other's, also where an expert of one does the work of two of the other.

    Attributes:
        positions: Number of positions with an expert in either model.
        same_set: Share of the positions that have the same experts in both.
        overlap: Number of choices that both models make, over the mean of their numbers of choices.
        matching: Int `(E,)`, for each expert of the first model the one of the second that it is matched with.
        matched_overlap: As `overlap`, under this matching.
        chance_overlap: What `matched_overlap` could be, at most, for gates with these loads that know nothing of each
            other.
        information: Of the expert of one model on the first choice of the other, as in `measure_specialisation`.
        counts: Int64 `(E, E)`, positions with an expert of the first model (row) and one of the second (column).

    Example:

    >>> other = keras.models.clone_model(model)  # with initial weights of its own
    >>> found = tf_moe.analysis.measure_stability(model, other, dataset)["moe"]
    >>> found.positions, found.overlap <= found.matched_overlap <= 1
    (128, True)
    """

    positions: int
    same_set: float
    overlap: float
    matching: np.ndarray
    matched_overlap: float
    chance_overlap: float
    information: Specialisation
    counts: np.ndarray

    def figures(self) -> dict[str, float]:
        """The numbers by name: a row of a table."""
        names = ("positions", "same_set", "overlap", "matched_overlap", "chance_overlap")
        shares = {"information": self.information.excess, "information_share": self.information.share}
        return {name: getattr(self, name) for name in names} | shares


def measure_stability(
    model: keras.Model, other: keras.Model, batches: Iterable, resamples: int = 100, seed: int | None = 0
) -> dict[str, Stability]:
    """How alike two models route, at evaluation, for every SparseMoE layer.

    Layers are compared in the order in which they are called, whatever their names, so the models should be two of one
    kind: `keras.models.clone_model` and `load_weights` make a second one for other weights.

    Args:
        model: Any Keras model on one device, whose layers have up to 4096 experts.
        other: A model with as many SparseMoE layers, of as many experts each, for the same inputs.
        batches: Their inputs; of tuples or lists, as `fit` takes them, the first part is used.
        resamples: As in `measure_specialisation`.
        seed: As there.

    Returns:
        A `Stability` for each layer, by its name in the first model.

    Raises:
        ValueError: If a model is not built, has no SparseMoE layer, or two of one name; if the layers are not of like
            number and size; there is no batch, or one in place of many; `resamples` is no integer of at least 0,
            or `seed` neither that nor None.
        TypeError: If one is no model.
        ImportError: If SciPy is not installed: `pip install 'tf_moe[analysis]'`.

    Example:

    >>> before = keras.models.clone_model(model)
    >>> before.set_weights(model.get_weights())  # and train on, which is left out here
    >>> tf_moe.analysis.measure_stability(before, model, dataset)["moe"].same_set
    1.0

    Reference: Vinh, Epps, Bailey (2010), Information theoretic measures for clusterings comparison, for agreement of
    groups without names.
    """
    resamples, seed = check_resampling(resamples, seed)
    check_batches(batches)
    observers = Observer(model), Observer(other)
    tallies: dict[str, StabilityTally] = {}
    for batch in batches:
        first, second = (observer(batch) for observer in observers)
        sizes = [[one.layer.total_experts for one in found.values()] for found in (first, second)]
        if sizes[0] != sizes[1] or not sizes[0] or max(sizes[0]) > LARGEST_MATRIX:
            raise ValueError(
                "Both models must have as many SparseMoE layers, of as many experts each, "
                f"{LARGEST_MATRIX} at most. Received: layers of {sizes[0]} and of {sizes[1]} experts."
            )
        leaf = keras.tree.flatten(inputs_of(batch))[0]
        for (name, one), like in zip(first.items(), second.values(), strict=True):
            if name not in tallies:
                tallies[name] = StabilityTally(one.layer.total_experts)
            tallies[name].add(one, like, len(leaf))
    if not tallies:
        raise ValueError("There must be a batch to compare the models on. Received: batches without any.")
    return {name: one.result(resamples, seed) for name, one in tallies.items()}


class StabilityTally:
    """Counts what makes a `Stability`."""

    def __init__(self, num_experts: int):
        self._counts = np.zeros((num_experts, num_experts), "int64")
        self._loads = np.zeros((2, num_experts))
        self._positions = self._same = 0
        self._labels = LabelCounter(GROUPS)

    def add(self, first: Decisions, second: Decisions, rows: int) -> None:
        """Count what both decided about the same batch of so many rows."""
        positions, experts = len(first.gate), len(self._counts)
        add_pairs(self._counts, first, second)
        keys = [np.arange(positions)[:, None] * experts + one.expert_index.astype("int64") for one in (first, second)]
        keys = [key[one.chosen] for key, one in zip(keys, (first, second), strict=True)]
        number, other = (one.chosen.sum(axis=1) for one in (first, second))
        shared = np.bincount(np.intersect1d(*keys, assume_unique=True) // experts, minlength=positions)
        some = (number > 0) | (other > 0)
        self._positions += int(some.sum())
        self._same += int((some & (number == shared) & (other == shared)).sum())
        self._loads += [np.bincount(key % experts, minlength=experts) for key in keys]
        best = np.take_along_axis(second.expert_index, second.gate.argmax(axis=1)[:, None], axis=1)[:, 0]
        whole = rows and not any(call % rows for call in first.calls)
        row = first.spread(np.arange(rows)) if whole else np.arange(positions)
        self._labels.add(first.expert_index, first.chosen, np.where(other > 0, best, -1), row)

    def result(self, resamples: int, seed: int | None) -> Stability:
        matching = best_matching(self._counts)
        number, other = np.sort(self._loads)
        all_choices = max(self._loads.sum() / 2, 1)
        return Stability(
            positions=self._positions,
            same_set=self._same / max(self._positions, 1),
            overlap=float(self._counts.trace() / all_choices),
            matching=matching,
            matched_overlap=float(self._counts[np.arange(len(matching)), matching].sum() / all_choices),
            chance_overlap=float(number @ other / max(self._positions, 1) / all_choices),
            information=specialisation(self._labels, resamples, seed),
            counts=self._counts,
        )
