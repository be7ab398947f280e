"""Mutual information of experts and labels from counts, what chance would make of it, and its error."""

from typing import NamedTuple

import numpy as np

# Numbers of a table of resampled counts, or of probable ones: 32 MB.
_CELLS = 2**22
# Keys that wait to be counted: 32 MB.
_WAITING = 2**22


def entropy(weights: np.ndarray) -> float:
    """Entropy in nats of the distribution that is proportional to these numbers, 0 or more; 0 where all are 0."""
    weights = np.asarray(weights, "float64")
    share = weights[weights > 0] / max(weights.sum(), np.finfo("float64").tiny)
    return float(-(share * np.log(share)).sum())


class LabelCounts(NamedTuple):
    """How often each expert met each label, by group of rows; only what occurs is held.

    Attributes:
        expert: Int `(M,)`, the expert of each pair that occurs, in order.
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

    def of_pairs(self) -> np.ndarray:
        """Float64 `(M,)`, assignments of each pair."""
        return np.bincount(self.pair, self.count, len(self.expert))

    def load(self) -> np.ndarray:
        """Int `(E,)`, assignments of each expert, up to the last that has any."""
        return np.bincount(self.expert, self.of_pairs()).astype("int64")


def information(counts: LabelCounts) -> float:
    """Plug-in estimate of what an expert tells of a label, in nats.

    The mean over all assignments of log P(label | expert) / P(label), where P(label) is the share of positions. If all
    positions have the same number of experts, it is the mutual information of the label and one of the position's
    experts, drawn by chance.
    """
    return float(_plug_in(counts, counts.of_pairs()[:, None], counts.positions.sum(axis=1, keepdims=True))[0])


def _plug_in(counts: LabelCounts, table: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The same of several samples: assignments of the pairs `(M, S)` and positions of the labels `(L, S)` -> `(S,)`."""
    if not len(table):
        return np.zeros(table.shape[1])
    _, first, expert = np.unique(counts.expert, return_index=True, return_inverse=True)
    load = np.add.reduceat(table, first, axis=0)
    chance = positions / positions.sum(axis=0)
    product = load[expert] * chance[counts.label]
    ratio = np.divide(table, product, out=np.ones_like(product), where=table > 0)
    return np.einsum("ms,ms->s", table, np.log(ratio)) / load.sum(axis=0)


def information_by_chance(counts: LabelCounts) -> float:
    """The mean of `information` over all permutations of the labels among the positions.

    A permutation gives an expert of n positions the labels of n positions drawn without replacement, so that it has a
    label as often as a hypergeometric distribution says. The estimate is a sum over experts and labels, and its mean
    the sum of theirs, which needs the distributions alone: no permutation is drawn, and the mean is exact.
    """
    load, experts = np.unique(counts.load(), return_counts=True)
    load, experts = load[load > 0], experts[load > 0]
    number, labels = np.unique(counts.positions.sum(axis=1), return_counts=True)
    if not len(load):
        return 0.0
    positions, total = int(number @ labels), 0.0
    for n, times in zip(number, labels, strict=True):
        share = n / positions
        widest = 22 + 10 * np.sqrt(positions * share * (1 - share))  # of the numbers that are probable
        pieces = min(len(load), int(len(load) * widest / _CELLS) + 1)
        for drawn, alike in zip(np.array_split(load, pieces), np.array_split(experts, pieces), strict=True):
            count, probability = _hypergeometric(positions, n, drawn)
            gain = count * np.log(np.maximum(count, 1) / (drawn * share)[:, None])
            total += int(times) * float(alike @ (probability * gain).sum(axis=1))
    return total / float(load @ experts)


def _hypergeometric(positions: int, n: int, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of n positions are among some drawn of all: numbers and their probabilities, both `(len(drawn), W)`.

    Of numbers further from the mean than ten standard deviations, and ten, the probability is left out.
    """
    share = n / positions
    mean = drawn * share
    width = 10 + 10 * np.sqrt(mean * (1 - share) * (positions - drawn) / max(positions - 1, 1))
    low = np.maximum(np.floor(mean - width), np.maximum(0, drawn + n - positions))
    high = np.minimum(np.ceil(mean + width), np.minimum(drawn, n))
    count = low[:, None] + np.arange(int((high - low).max()) + 1)
    before = count[:, :-1]  # the probability of each number from that of the one before
    above = np.maximum((n - before) * (drawn[:, None] - before), 0)
    below = (before + 1) * (positions - n - drawn[:, None] + before + 1)
    with np.errstate(divide="ignore"):
        steps = np.log(above) - np.log(np.maximum(below, 1))
    logarithm = np.concatenate([np.zeros((len(drawn), 1)), np.cumsum(steps, axis=1)], axis=1)
    probability = np.exp(logarithm - logarithm.max(axis=1, keepdims=True))
    return count, probability / probability.sum(axis=1, keepdims=True)


def standard_error(counts: LabelCounts, resamples: int, rng: np.random.Generator) -> float:
    """Standard error of `information` by the bootstrap over groups of rows; NaN with fewer than two."""
    groups = np.flatnonzero(counts.positions.sum(axis=0))
    number = len(groups)
    if number < 2 or resamples < 2:
        return float("nan")
    order = np.argsort(counts.group, kind="stable")
    ends = np.searchsorted(counts.group[order], groups, side="right")
    parts = [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    values = []
    at_once = max(1, _CELLS // max(len(counts.expert), 1))
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        weights = rng.multinomial(number, np.full(number, 1 / number), size=size).T.astype("float64")
        table = np.zeros((len(counts.expert), size))
        for part, weight in zip(parts, weights, strict=True):  # a pair has one count in a group
            table[counts.pair[part]] += counts.count[part, None] * weight
        values.append(_plug_in(counts, table, counts.positions[:, groups] @ weights))
    # A sample of n groups varies by (n - 1) / n of what n groups from all rows there might be would.
    return float(np.std(np.concatenate(values)) * np.sqrt(number / (number - 1)))


def most_information(counts: LabelCounts, choice_entropy: float) -> float:
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

    def __init__(self, groups: int):
        self._groups, self._rows = groups, 0
        self._pairs, self._positions = _KeyCounter(), _KeyCounter()
        self._choice_entropy = self._assignments = 0.0

    def add(self, expert_index: np.ndarray, chosen: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> None:
        """Count experts `(T, K)`, of which `chosen` are any, with labels `(T,)`; negative ones are left out.

        `rows`, Int `(T,)`, says in which row of the batch a position is.
        """
        expert_index, labels = expert_index.astype("int64"), labels.astype("int64")
        group = (self._rows + rows) % self._groups
        self._rows += int(rows.max(initial=-1)) + 1
        chosen = chosen & (labels >= 0)[:, None]
        number = chosen.sum(axis=1)
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

    def result(self) -> tuple[LabelCounts, np.ndarray]:
        """The counts, with labels numbered from 0; and what each was, `(L,)`."""
        key, count = self._positions.result()
        values, label = np.unique(key // self._groups, return_inverse=True)
        positions = np.zeros((len(values), self._groups), "int64")
        positions[label, key % self._groups] = count
        key, count = self._pairs.result()
        pairs, pair = np.unique(key // self._groups, return_inverse=True)
        expert, label = np.divmod(pairs, _LABELS)
        return LabelCounts(expert, np.searchsorted(values, label), pair, key % self._groups, count, positions), values


class _KeyCounter:
    """How often each integer was added."""

    def __init__(self):
        self._number = 0
        self._keys, self._counts = np.empty((2, 0), "int64")
        self._waiting: list[np.ndarray] = []

    def add(self, keys: np.ndarray) -> None:
        self._waiting.append(keys)
        self._number += len(keys)
        if self._number > _WAITING:
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
