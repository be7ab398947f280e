"""What a capacity would drop: how much room the experts of a model need."""

from collections.abc import Iterable, Sequence

import keras
import numpy as np

from tf_moe import checks
from tf_moe.analysis.observer import Batch, Decisions, Observer, tally
from tf_moe.dispatch import capacity_of
from tf_moe.layers import SparseMoE


def measure_drops(
    model: keras.Model, batches: Iterable, capacity_factors: Sequence[float] = (1.0, 1.25, 1.5, 2.0)
) -> dict[str, dict[float, float]]:
    """Share of the choices that would find no room with each capacity factor, for every SparseMoE layer, at evaluation.

    To choose the `capacity_factor` of a layer that was trained without, for an export with static shapes or for a mesh.
    The model is called as it is; what layers above would make of zeros in the place of what is dropped does not show.
    Room depends on the size of the batch: the smaller, the less even its loads. A layer that the model calls several
    times is taken as if it had been called once, with the positions of all calls.

    Args:
        model: Any Keras model on one device.
        batches: Its inputs, in batches as large as those to come; of tuples or lists, as `fit` takes them, the first
            part is used.
        capacity_factors: Numbers above 0. Default 1.0, 1.25, 1.5 and 2.0.

    Returns:
        By the name of the layer and the factor a share from 0 to 1.

    Raises:
        ValueError: As `measure_usage`, and if a factor is no number above 0.
        TypeError: If `model` is no `keras.Model`.

    Example:

    >>> drops = tf_moe.analysis.measure_drops(model, dataset, capacity_factors=(1.0, 4.0))["moe"]
    >>> drops[1.0] >= drops[4.0]
    True

    Reference: section 2.2 of Lepikhin et al. (2021), GShard, for the capacity of an expert.
    """
    if not isinstance(capacity_factors, Iterable):
        raise ValueError(
            f"capacity_factors must be numbers above 0. Received: capacity_factors={capacity_factors!r}. Pass a list."
        )
    capacity_factors = tuple(capacity_factors)
    for factor in capacity_factors:
        checks.number("capacity_factors", factor, "numbers above 0", lambda x: x > 0)
    tallies = tally(Observer(model), batches, lambda layer: DropTally(layer, capacity_factors))
    return {name: one.result() for name, one in tallies.items()}


class DropTally:
    """Counts choices, and those beyond each capacity."""

    def __init__(self, layer: SparseMoE, capacity_factors: Sequence[float]):
        self._layer, self._choices = layer, 0
        self._dropped = dict.fromkeys(capacity_factors, 0)

    def add(self, decisions: Decisions, batch: Batch) -> None:
        experts, k = self._layer.total_experts, self._layer.total_k
        load = np.bincount(decisions.expert_index[decisions.chosen], minlength=experts)
        self._choices += int(load.sum())
        for factor in self._dropped:
            capacity = capacity_of(len(decisions.gate), experts, k, factor)
            self._dropped[factor] += int(np.maximum(load - capacity, 0).sum())

    def result(self) -> dict[float, float]:
        return {factor: dropped / max(self._choices, 1) for factor, dropped in self._dropped.items()}
