"""All that can be seen of the gates of a model, in one pass over the data."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras

from tf_moe import checks
from tf_moe.analysis.co_activation import LARGEST_MATRIX, CoActivation, CoActivationTally
from tf_moe.analysis.labels import Label
from tf_moe.analysis.observer import Batch, Decisions, Observer, tally
from tf_moe.analysis.specialisation import Specialisation, SpecialisationTally, as_labels, check_resampling
from tf_moe.analysis.top_inputs import TopInput, TopTally
from tf_moe.analysis.usage import Usage, UsageTally


class Findings(NamedTuple):
    """What was found of one layer.

    Attributes:
        num_experts: Number of its experts; a pair for two levels.
        k: Experts for a position; a pair for two levels.
        capacity_factor: Of the layer.
        usage: How the experts are used.
        co_activation: Which are chosen together; None with one for a position, or more than 4096 in all.
        specialisation: What they tell of each label.
        tops: The inputs with the highest gate values of each expert; None where ids were not asked for.
        labels: The labels.

    Example:

    >>> found = tf_moe.analysis.measure_all(model, dataset)["moe"]
    >>> found.num_experts, found.k, found.usage.positions
    (8, 2, 128)
    """

    num_experts: int | tuple[int, int]
    k: int | tuple[int, int]
    capacity_factor: float | None
    usage: Usage
    co_activation: CoActivation | None
    specialisation: dict[str, Specialisation]
    tops: list[list[TopInput]] | None
    labels: dict[str, Label]


def measure_all(
    model: keras.Model,
    batches: Iterable,
    labels: Mapping[str, Label | Callable[[Any], Any]] | None = None,
    ids_of: Callable[[Any], Any] | None = None,
    layers: str | Sequence[str] | None = None,
    tops: int = 5,
    resamples: int = 100,
    seed: int | None = 0,
) -> dict[str, Findings]:
    """Usage, co-activation, specialisation and top inputs of the SparseMoE layers of a model, in one pass.

    `write_report` makes a page of it.

    Args:
        model: Any Keras model on one device.
        batches: Its inputs; of tuples or lists, as `fit` takes them, the first part is used.
        labels: As in `measure_specialisation`. Default none.
        ids_of: As in `top_inputs`: what finds the ids `(batch, time)` of the layers' positions. Default None: no top
            inputs.
        layers: Names of the layers to look at. Default all. Labels and ids are those of all of these: of a
            `Translator`, whose encoder and decoder have other positions, look at one at a time.
        tops: Number of top inputs for each expert. Default 5.
        resamples: As in `measure_specialisation`.
        seed: As there.

    Returns:
        `Findings` for each layer's name.

    Raises:
        ValueError: As `measure_usage`, `measure_specialisation` and `top_inputs`; if a layer is not called.
        TypeError: As these.

    Example:

    >>> labels = {"place": tf_moe.analysis.labels.places()}
    >>> found = tf_moe.analysis.measure_all(model, dataset, labels, ids_of=lambda inputs: inputs, tops=3)["moe"]
    >>> found.specialisation["place"].share < 0.2, len(found.tops[0])  # this model does not know places
    (True, 3)
    """
    checks.integer("tops", tops)
    resamples, seed = check_resampling(resamples, seed)
    labels = as_labels(labels or {})
    layers = [layers] if isinstance(layers, str) else layers
    found = tally(Observer(model), batches, lambda layer: _LayerTally(layer, labels, ids_of, tops), layers)
    return {name: one.result(resamples, seed) for name, one in found.items()}


class _LayerTally:
    """All tallies of one layer."""

    def __init__(self, layer, labels, ids_of, tops):
        self._layer, self._labels = layer, labels
        self._usage = UsageTally(layer)
        self._specialisation = SpecialisationTally(layer.name, labels)
        pairs = layer.total_k > 1 and layer.total_experts <= LARGEST_MATRIX
        self._pairs = CoActivationTally(layer) if pairs else None
        self._tops = None if ids_of is None else TopTally(layer, tops, ids_of)
        self._all = [one for one in (self._usage, self._specialisation, self._pairs, self._tops) if one is not None]

    def add(self, decisions: Decisions, batch: Batch) -> None:
        for one in self._all:
            one.add(decisions, batch)

    def result(self, resamples: int, seed: int | None) -> Findings:
        return Findings(
            self._layer.num_experts,
            self._layer.k,
            self._layer.capacity_factor,
            self._usage.result(),
            None if self._pairs is None else self._pairs.result(),
            self._specialisation.result(resamples, seed),
            None if self._tops is None else self._tops.result(),
            self._labels,
        )
