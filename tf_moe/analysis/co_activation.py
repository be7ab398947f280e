"""Which experts are chosen together."""

from collections.abc import Iterable
from typing import NamedTuple

import keras
import numpy as np

from tf_moe import checks
from tf_moe.analysis.observer import Batch, Decisions, Observer, tally

# A matrix of 4096 experts has 134 MB.
LARGEST_MATRIX = 4096


class CoActivation(NamedTuple):
    """How often the experts of one layer are chosen together, and how often they would be by chance.

    Attributes:
        counts: Int64 `(E, E)`, positions that have both experts; on the diagonal, that have the expert.
        expected: Float64 `(E, E)`, what `counts` would be if no expert sought or shunned another, with the same number
            of pairs for each expert; NaN on the diagonal.

    Example:

    >>> counts = np.kron(np.eye(2, dtype=int), np.full((2, 2), 30))  # experts 0 and 1, and 2 and 3, always together
    >>> expected = np.where(np.eye(4), np.nan, 10.0)
    >>> tf_moe.analysis.CoActivation(counts, expected).pairs(1)
    [{'expert': 0, 'other': 1, 'together': 30, 'by_chance': 10.0, 'ratio': 3.0}]
    """

    counts: np.ndarray
    expected: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """Float64 `(E, E)`, counts over expected: 1 is chance; NaN on the diagonal and where nothing is expected."""
        return self.counts / np.where(self.expected > 0, self.expected, np.nan)

    def pairs(self, count: int = 10) -> list[dict[str, float]]:
        """The pairs of experts that are together most above chance, by their share of the log-likelihood ratio."""
        count = checks.integer("count", count)
        ratio = self.ratio
        first, second = np.nonzero(np.triu(self.counts > self.expected, 1))
        gain = self.counts[first, second] * np.log(ratio[first, second])
        best = np.argsort(-gain, kind="stable")[:count]
        return [
            {
                "expert": int(i),
                "other": int(j),
                "together": int(self.counts[i, j]),
                "by_chance": float(self.expected[i, j]),
                "ratio": float(ratio[i, j]),
            }
            for i, j in zip(first[best], second[best], strict=True)
        ]


def measure_co_activation(model: keras.Model, batches: Iterable) -> dict[str, CoActivation]:
    """How often the experts of every SparseMoE layer are chosen together, at evaluation.

    Chance is not the product of both loads, under which all pairs together would have another number than there are:
    an expert is never chosen twice. It is the model of quasi-independence, counts `a_i a_j` off the diagonal with the
    observed number of pairs for each expert, fitted by iterative scaling.

    Args:
        model: Any Keras model on one device, whose layers have up to 4096 experts.
        batches: Its inputs; of tuples or lists, as `fit` takes them, the first part is used.

    Returns:
        A `CoActivation` for each layer's name. With one expert for a position no two are together.

    Raises:
        ValueError: As `measure_usage`, and if a layer has more than 4096 experts.
        TypeError: If `model` is no `keras.Model`.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), tf_moe.layers.SparseMoE(4, 16, k=2, name="moe")])
    >>> found = tf_moe.analysis.measure_co_activation(model, [tf.random.normal([32, 8])])["moe"]
    >>> int(found.counts.trace()), int(found.counts.sum())  # 2 experts and 2 x 2 pairs for each of 32 positions
    (64, 128)

    Reference: Goodman (1968), The analysis of cross-classified data: independence, quasi-independence, and
    interactions in contingency tables with or without missing entries.
    """
    return {name: one.result() for name, one in tally(Observer(model), batches, CoActivationTally).items()}


class CoActivationTally:
    """Adds up what makes a `CoActivation`."""

    def __init__(self, layer):
        experts = layer.total_experts
        if experts > LARGEST_MATRIX:
            raise ValueError(
                f"Pairs can be counted of up to {LARGEST_MATRIX} experts. Received: {layer.name!r} with {experts}."
            )
        self._counts = np.zeros((experts, experts), "int64")

    def add(self, decisions: Decisions, batch: Batch) -> None:
        add_pairs(self._counts, decisions, decisions)

    def result(self) -> CoActivation:
        return CoActivation(self._counts, quasi_independent(self._counts))


def add_pairs(counts: np.ndarray, first: Decisions, second: Decisions) -> None:
    """Add to counts `(E, E)`, for each position, every pair of an expert in the first and one in the second."""
    for index, chosen in zip(first.expert_index.T, first.chosen.T, strict=True):
        both = chosen[:, None] & second.chosen
        cells = index[:, None].astype("int64") * counts.shape[1] + second.expert_index
        np.add.at(counts.reshape(-1), cells[both], 1)  # of a view


def quasi_independent(counts: np.ndarray, tolerance: float = 1e-9, most: int = 1000) -> np.ndarray:
    """The symmetric matrix `a_i a_j` with the row sums of a symmetric one, neither with its diagonal, which is NaN."""
    target = counts.sum(axis=1) - counts.diagonal()
    factor = target / max(target.sum(), 1) ** 0.5
    for _ in range(most):
        row = factor * (factor.sum() - factor)
        if np.abs(row - target).max(initial=0) <= tolerance * max(target.sum(), 1):
            break
        factor = factor * np.sqrt(target / np.where(row > 0, row, 1))
    expected = np.outer(factor, factor)
    np.fill_diagonal(expected, np.nan)
    return expected
