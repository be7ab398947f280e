"""How a trained model uses its experts."""

from collections.abc import Iterable
from typing import NamedTuple

import keras
import numpy as np

from tf_moe.analysis.information import entropy
from tf_moe.analysis.observer import Batch, Decisions, Observer, tally
from tf_moe.losses import cv_squared


class Usage(NamedTuple):
    """How often and how strongly the experts of one layer were used. Entropies are in nats.

    Attributes:
        load: Float64 `(E,)`, number of positions sent to each expert, those included that found no room there.
        importance: Float64 `(E,)`, sum of its gate values.
        distribution: Float64 `(E,)`, the mean over the positions of their gate values, those of each position scaled to
            add up to 1; `importance` sums them as they are. None where it was not measured.
        positions: Number of positions with an expert; masked ones have none.
        dropped: Number of choices that the experts' capacity had no room for.
        mean_entropy: Mean over the positions of the entropy of their gate values: 0 where each has one expert, and
            log k where each trusts its k alike.

    Example:

    >>> usage = tf_moe.analysis.Usage(load=np.array([6.0, 2.0]), importance=np.array([3.0, 1.0]))
    >>> float(usage.load.max() / usage.load.mean())
    1.5
    """

    load: np.ndarray
    importance: np.ndarray
    distribution: np.ndarray | None = None
    positions: int = 0
    dropped: int = 0
    mean_entropy: float = 0.0

    @property
    def load_cv(self) -> float:
        """Coefficient of variation of the load, the standard deviation over the mean."""
        return float(cv_squared(self.load)) ** 0.5

    @property
    def importance_cv(self) -> float:
        """Coefficient of variation of the importance."""
        return float(cv_squared(self.importance)) ** 0.5

    @property
    def max_over_mean_load(self) -> float:
        """Load of the busiest expert over the mean."""
        return float(self.load.max() / self.load.mean()) if self.load.any() else 0.0

    @property
    def dropped_fraction(self) -> float:
        """Share of the choices that found no room."""
        return float(self.dropped / self.load.sum()) if self.load.any() else 0.0

    @property
    def entropy_of_mean(self) -> float:
        """Entropy of the mean distribution: log E where all experts are used alike.

        How much it is above `mean_entropy` is the mutual information of position and expert: how much the gate tells
        positions apart.
        """
        return entropy(self.importance if self.distribution is None else self.distribution)

    @property
    def effective_experts(self) -> float:
        """Number of experts that, used alike, would have this `entropy_of_mean`."""
        return float(np.exp(self.entropy_of_mean))

    def dead(self, share: float = 0.0) -> np.ndarray:
        """Indices of the experts with no more than this share of the mean load; none where there was no load."""
        return np.flatnonzero((self.load <= share * self.load.mean()) & (self.load < self.load.mean()))

    def figures(self) -> dict[str, float]:
        """The numbers of the layer as a whole, by name: a row of a table, or what to log."""
        return {
            "positions": self.positions,
            "dead_experts": len(self.dead()),
            "load_cv": self.load_cv,
            "importance_cv": self.importance_cv,
            "max_over_mean_load": self.max_over_mean_load,
            "dropped_fraction": self.dropped_fraction,
            "entropy_of_mean": self.entropy_of_mean,
            "mean_entropy": self.mean_entropy,
            "effective_experts": self.effective_experts,
        }


def measure_usage(model: keras.Model, batches: Iterable) -> dict[str, Usage]:
    """Load, importance, drops and entropy of the experts of every SparseMoE layer of a model, at evaluation.

    Args:
        model: Any Keras model on one device, layers inside of layers too.
        batches: Its inputs; of tuples or lists, as `fit` takes them, the first part is used.

    Returns:
        A `Usage` for each layer's name, summed over all batches and all its calls.

    Raises:
        ValueError: If the model has no SparseMoE layer, or two of one name, is not built; if there is no batch, or one
            in place of many.
        TypeError: If `model` is no `keras.Model`.

    Example:

    >>> usage = tf_moe.analysis.measure_usage(model, dataset)["moe"]
    >>> int(usage.load.sum()), round(float(usage.importance.sum()))  # 16 x 8 positions, 2 experts for each
    (256, 128)

    Reference: the columns CV(Importance), CV(Load) and max/mean Load of table 6 of Shazeer et al. (2017).
    """
    return {name: one.result() for name, one in tally(Observer(model), batches, UsageTally).items()}


class UsageTally:
    """Adds up what makes a `Usage`."""

    def __init__(self, layer):
        self._load, self._importance, self._distribution = np.zeros((3, layer.total_experts))
        self._positions = self._dropped = 0
        self._entropy = 0.0

    def add(self, decisions: Decisions, batch: Batch) -> None:
        experts, gate = len(self._load), decisions.gate.astype("float64")
        index = decisions.expert_index.ravel()
        total = gate.sum(axis=1, keepdims=True)
        share = gate / np.where(total > 0, total, 1)
        self._load += np.bincount(index, decisions.chosen.ravel(), experts)
        self._importance += np.bincount(index, gate.ravel(), experts)
        self._distribution += np.bincount(index, share.ravel(), experts)
        self._positions += int(np.count_nonzero(total))
        self._dropped += decisions.dropped
        self._entropy -= float((share * np.log(np.where(share > 0, share, 1))).sum())

    def result(self) -> Usage:
        positions = max(self._positions, 1)
        return Usage(
            self._load,
            self._importance,
            self._distribution / positions,
            self._positions,
            self._dropped,
            float(self._entropy / positions),
        )
