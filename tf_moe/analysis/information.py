"""Mutual information of experts and labels from counts, what chance would make of it, and its error."""

from typing import NamedTuple

import numpy as np

from tf_moe.analysis.usage import entropy


class Counts(NamedTuple):
    """How often each expert met each label, by group of rows; only what occurs is held.

    Attributes:
        expert: Int `(M,)`, the expert of each pair that occurs.
        label: Int `(M,)`, its label, 0 to L - 1.
        pair: Int `(N,)`, for each count which pair it is of.
        group: Int `(N,)`, and of which of G groups of rows.
        count: Int `(N,)`, assignments.
        positions: Int `(L, G)`, positions with the label.
    """

    expert: np.ndarray
    label: np.ndarray
    pair: np.ndarray
    group: np.ndarray
    count: np.ndarray
    positions: np.ndarray

    def of_pairs(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Float64 `(M,)`, assignments of each pair, where each group is taken as often as its weight says."""
        count = self.count if weights is None else self.count * weights[self.group]
        return np.bincount(self.pair, count, len(self.expert))

    def load(self) -> np.ndarray:
        """Int `(E,)`, assignments of each expert, up to the last that has any."""
        return np.bincount(self.expert, self.of_pairs()).astype("int64")


def information(counts: Counts, weights: np.ndarray | None = None) -> float:
    """Plug-in estimate of what an expert tells of a label, in nats.

    The mean over all assignments of log P(label | expert) / P(label), where P(label) is the share of positions. If all
    positions have the same number of experts, it is the mutual information of the label and one of the position's
    experts, drawn by chance.

    Args:
        counts: What was counted.
        weights: `(G,)`, how often each group of rows is taken. Default: once.
    """
    count = counts.of_pairs(weights)
    positions = counts.positions.sum(axis=1) if weights is None else counts.positions @ weights
    load = np.bincount(counts.expert, count)
    seen = count > 0
    count, expert, label = count[seen], counts.expert[seen], counts.label[seen]
    ratio = count / load[expert] / (positions[label] / positions.sum())
    return float(count @ np.log(ratio) / count.sum()) if len(count) else 0.0


def shuffled_information(counts: Counts, shuffles: int, rng: np.random.Generator) -> float:
    """The mean of `information` over random permutations of the labels among the positions.

    A permutation gives an expert of n positions the labels of n positions drawn without replacement, and the estimate
    is a sum over the experts. So its mean is that of as many draws for each expert by itself, from a multivariate
    hypergeometric distribution: exactly, and without the positions at hand.
    """
    positions = counts.positions.sum(axis=1)
    load = counts.load()
    # The most frequent first: where few are left to draw, the rest is skipped.
    positions = np.sort(positions)[::-1]
    share = positions / max(positions.sum(), 1)
    total = 0.0
    for n in load[load > 0]:
        drawn = rng.multivariate_hypergeometric(positions, n, size=shuffles, method="marginals")
        row, label = np.nonzero(drawn)
        count = drawn[row, label]
        total += count @ np.log(count / n / share[label])
    return float(total / max(load.sum(), 1) / max(shuffles, 1))


def standard_error(counts: Counts, resamples: int, rng: np.random.Generator) -> float:
    """Standard error of `information` by the bootstrap over groups of rows; NaN with fewer than two."""
    groups = np.flatnonzero(counts.positions.sum(axis=0))
    number = len(groups)
    if number < 2 or resamples < 2:
        return float("nan")
    weights = np.zeros((resamples, counts.positions.shape[1]))
    weights[:, groups] = rng.multinomial(number, np.full(number, 1 / number), size=resamples)
    # A sample of n groups varies by (n - 1) / n of what n groups from all rows there might be would.
    return float(np.std([information(counts, row) for row in weights]) * np.sqrt(number / (number - 1)))


def most_information(counts: Counts, choice_entropy: float) -> float:
    """The most that `information` could be for these loads and labels.

    Args:
        counts: What was counted.
        choice_entropy: Mean over all assignments of the log of the number of experts of their position, of which one is
            drawn by chance.
    """
    return max(0.0, min(entropy(counts.positions.sum(axis=1)), entropy(counts.load()) - choice_entropy))


# Labels are below this: with 64 groups of rows there is room for 67 million experts in 63 bits.
_LABELS = 2**31


class LabelCounter:
    """Counts assignments by expert and label and positions by label, in groups of rows. Memory grows with what occurs.

    Args:
        groups: Number of groups; row r of the data is in group r modulo this.
    """

    # Keys that wait to be counted: 32 MB.
    _WAITING = 2**22

    def __init__(self, groups: int):
        self._groups, self._rows = groups, 0
        self._pairs, self._positions = _KeyCounter(self._WAITING), _KeyCounter(self._WAITING)
        self._choice_entropy = self._assignments = 0.0

    def add(self, expert_index: np.ndarray, chosen: np.ndarray, labels: np.ndarray, rows: int) -> None:
        """Count experts `(T, K)`, of which `chosen` are any, with labels `(T,)`; negative ones are left out."""
        expert_index, labels = expert_index.astype("int64"), labels.astype("int64")
        group = np.repeat((self._rows + np.arange(rows)) % self._groups, len(labels) // max(rows, 1))
        self._rows += rows
        chosen = chosen & (labels >= 0)[:, None]
        number = chosen.sum(axis=1)
        kept = number > 0
        kept = number > 0
        self._positions.add((labels * self._groups + group)[kept])
        position, _ = np.nonzero(chosen)
        pair = expert_index[chosen] * _LABELS + labels[position]
        self._pairs.add(pair * self._groups + group[position])
        number = number[kept]
        self._choice_entropy += float(number @ np.log(number))
        self._assignments += number.sum()

    @property
    def choice_entropy(self) -> float:
        """Mean over the assignments of the log of the number of experts of their position."""
        return float(self._choice_entropy / max(self._assignments, 1))

    def result(self) -> tuple[Counts, np.ndarray]:
        """The counts, with labels numbered from 0; and what each was, `(L,)`."""
        key, count = self._positions.result()
        values, label = np.unique(key // self._groups, return_inverse=True)
        positions = np.zeros((len(values), self._groups), "int64")
        positions[label, key % self._groups] = count
        key, count = self._pairs.result()
        pairs, pair = np.unique(key // self._groups, return_inverse=True)
        expert, label = np.divmod(pairs, _LABELS)
        return Counts(expert, np.searchsorted(values, label), pair, key % self._groups, count, positions), values


class _KeyCounter:
    """How often each integer was added."""

    def __init__(self, waiting: int):
        self._most, self._number = waiting, 0
        self._keys, self._counts = np.empty((2, 0), "int64")
        self._waiting: list[np.ndarray] = []

    def add(self, keys: np.ndarray) -> None:
        self._waiting.append(keys)
        self._number += len(keys)
        if self._number > self._most:
            self.result()

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """The integers, in order, and the number of each."""
        new, counts = np.unique(np.concatenate([np.empty(0, "int64"), *self._waiting]), return_counts=True)
        self._waiting, self._number = [], 0
        both = np.concatenate([self._keys, new])
        self._keys, place = np.unique(both, return_inverse=True)
        totals = np.zeros(len(self._keys), "int64")
        np.add.at(totals, place, np.concatenate([self._counts, counts]))
        self._counts = totals
        return self._keys, self._counts
