"""How much the experts of a layer are specialised: what an expert tells of a label of its positions."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from tf_moe import checks
from tf_moe.analysis.information import (
    LabelCounter,
    LabelCounts,
    entropy,
    information,
    information_by_chance,
    most_information,
    standard_error,
)
from tf_moe.analysis.labels import Label
from tf_moe.analysis.observer import Batch, Decisions, Observer, tally

# Groups of rows that are resampled: enough for an error that is itself known to a tenth or so.
GROUPS = 64


class Specialisation(NamedTuple):
    """What the experts of one layer tell of one label. All in nats.

    Attributes:
        information: Plug-in estimate of the mutual information of expert and label. It is above the truth, and above 0
            where there is nothing to find, the more so the more labels and the fewer positions there are.
        baseline: The mean of that estimate over all permutations of the labels among the positions.
        standard_error: Of `information`, by the bootstrap over rows; NaN where there was one row.
        limit: The most that it could be for these loads and labels.
        label_entropy: Entropy of the label.
        counts: The counts by expert and label.
        values: Int `(L,)`, what the labels in the counts are.

    Example:

    >>> parity = tf_moe.analysis.Label(lambda ids: ids % 2, names=("even", "odd"))
    >>> found = tf_moe.analysis.measure_specialisation(model, dataset, "moe", {"parity": parity})["parity"]
    >>> found.interval[0] < found.excess < found.information < found.label_entropy
    True
    >>> found.share_of_labels(8)  # of each expert's positions, the share of even and of odd tokens
    array([[...]])
    """

    information: float
    baseline: float
    standard_error: float
    limit: float
    label_entropy: float
    counts: LabelCounts
    values: np.ndarray

    @property
    def excess(self) -> float:
        """Information above the baseline: the estimate to go by, near 0 where experts know nothing of the label."""
        return self.information - self.baseline

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 95% confidence interval of the excess, 1.96 standard errors on either side."""
        return self.excess - 1.96 * self.standard_error, self.excess + 1.96 * self.standard_error

    @property
    def share(self) -> float:
        """The excess as a share of what it could be, an adjusted mutual information.

        0 is chance. At 1 the label says which experts are chosen, or one expert says the label.
        """
        room = self.limit - self.baseline
        return self.excess / room if room > 0 else 0.0

    def figures(self) -> dict[str, float]:
        """The numbers by name: a row of a table, or what to log."""
        low, high = self.interval
        names = ("information", "baseline", "excess")
        return {name: getattr(self, name) for name in names} | {
            "low": low,
            "high": high,
            "share": self.share,
            "limit": self.limit,
            "label_entropy": self.label_entropy,
        }

    def top_labels(self, expert: int, count: int = 5) -> list[dict[str, float]]:
        """The labels that an expert has most above chance, by what they add to its information."""
        expert, count = checks.integer("expert", expert, least=0), checks.integer("count", count)
        mine = self.counts.expert == expert
        number, label = self.counts.of_pairs()[mine], self.counts.label[mine]
        positions = self.counts.positions.sum(axis=1)
        share = number / max(number.sum(), 1)
        ratio = share / (positions[label] / positions.sum())
        gain = share * np.log(ratio)
        best = np.argsort(-gain, kind="stable")[:count]
        return [
            {
                "label": int(self.values[label[n]]),
                "positions": int(number[n]),
                "share": float(share[n]),
                "ratio": float(ratio[n]),
            }
            for n in best[gain[best] > 0]
        ]

    def share_of_labels(self, num_experts: int) -> np.ndarray:
        """Float64 `(E, L)`, the labels of each expert's positions as shares; rows of zeros for dead experts."""
        table = np.zeros((num_experts, len(self.values)))
        table[self.counts.expert, self.counts.label] = self.counts.of_pairs()
        return table / np.maximum(table.sum(axis=1, keepdims=True), 1)


def measure_specialisation(
    model: keras.Model,
    batches: Iterable,
    layer: str,
    labels: Mapping[str, Label | Callable[[Any], Any]],
    resamples: int = 100,
    seed: int | None = 0,
) -> dict[str, Specialisation]:
    """How much the experts of a layer tell of labels of their positions, at evaluation.

    Estimated is the mutual information I(expert; label), where the expert is one of a position's, drawn by chance: by
    the plug-in estimate from counts, less its mean over permutations of the labels, which is its bias where there is no
    dependence (and more than its bias where there is much, so that the estimate is on the safe side). The mean is over
    all permutations, which follows from the counts; none is drawn. The error is that of the bootstrap over rows, which
    are dealt to 64 groups: rows should be independent of each other, words in them need not be.

    What is held are counts of pairs of expert and label that occur, and not the positions.

    Args:
        model: Any Keras model on one device.
        batches: Its inputs; of tuples or lists, as `fit` takes them, the first part is used.
        layer: Name of a SparseMoE layer of the model.
        labels: By name, a `Label`, or a function from the inputs to integers `(batch, time)` or `(batch,)`. See
            `tokens`, `word_classes` and `places` in `tf_moe.analysis.labels`.
        resamples: Number of bootstrap samples. Default 100; 0 for no error.
        seed: Of the samples. Default 0; None for others every time.

    Returns:
        A `Specialisation` for each label.

    Raises:
        ValueError: As `measure_usage`; if there is no such layer, or a label is not of integers, one for each position
            or row; `resamples` is no integer of at least 0, or `seed` neither that nor None.
        TypeError: If `model` is no `keras.Model`, or a label no function.

    Example:

    >>> first = tf_moe.analysis.Label(lambda ids: ids[:, 0])  # of a row: it may be what says the language
    >>> labels = {"token": tf_moe.analysis.labels.tokens(), "first": first}
    >>> found = tf_moe.analysis.measure_specialisation(model, dataset, "moe", labels)
    >>> round(found["token"].share, 2)  # all that this model's gate sees is the token
    1.0
    >>> found["first"].share < 0.5
    True

    Reference: Vinh, Epps, Bailey (2010), Information theoretic measures for clusterings comparison, for the mean over
    permutations and the adjusted share; Davison, Hinkley (1997), Bootstrap methods and their application, section 3.8,
    for resampling what belongs together. Table 9 of Shazeer et al. (2017) shows what experts specialise in by examples.
    """
    resamples, seed = check_resampling(resamples, seed)
    labels = as_labels(labels)
    found = tally(Observer(model), batches, lambda one: SpecialisationTally(one.name, labels), [layer])
    return found[layer].result(resamples, seed)


def check_resampling(resamples: int, seed: int | None) -> tuple[int, int | None]:
    """Both numbers; raises ValueError unless there can be so many bootstrap samples, with such a seed."""
    return checks.integer("resamples", resamples, least=0), None if seed is None else checks.integer("seed", seed, 0)


def as_labels(labels: Mapping[str, Label | Callable[[Any], Any]]) -> dict[str, Label]:
    """Labels, of which some may be bare functions; raises TypeError for what is neither."""
    checks.instance("labels", labels, Mapping, "Pass a dictionary of labels or functions, by name.")
    for name, label in labels.items():
        if not callable(label.of if isinstance(label, Label) else label):
            raise TypeError(f"A label must be a Label or a function of the inputs. Received: {name!r}: {label!r}.")
    return {name: label if isinstance(label, Label) else Label(label) for name, label in labels.items()}


class SpecialisationTally:
    """Counts what makes the `Specialisation` of a layer in some labels."""

    def __init__(self, layer: str, labels: Mapping[str, Label]):
        self._layer, self._labels = layer, labels
        self._counters = {name: LabelCounter(GROUPS) for name in labels}

    def add(self, decisions: Decisions, batch: Batch) -> None:
        for name, label in self._labels.items():
            values, rows = self._of_positions(name, batch.values(label.of), decisions)
            self._counters[name].add(decisions.expert_index, decisions.chosen, values, rows)

    def _of_positions(self, name: str, values: Any, decisions: Decisions) -> tuple[np.ndarray, np.ndarray]:
        """Labels `(T,)` of the positions, and their rows `(T,)`."""
        values = np.asarray(values)
        values = values.astype("int8") if values.dtype == bool else values
        integers = np.issubdtype(values.dtype, np.integer) and (not values.size or values.max() < 2**31)
        of_rows = values.ndim == 1 and len(values) and not any(call % len(values) for call in decisions.calls)
        of_positions = values.ndim > 1 and all(call == values.size for call in decisions.calls)
        if not integers or not (of_rows or of_positions):
            positions = " and ".join(map(str, decisions.calls))
            raise ValueError(
                f"A label must be integers below 2^31, (batch, time) for the {positions} positions of "
                f"{self._layer!r} or (batch,). Received: {name!r} with dtype {values.dtype} and shape {values.shape}."
            )
        return decisions.spread(values.ravel()), decisions.spread(np.arange(len(values)))

    def result(self, resamples: int, seed: int | None) -> dict[str, Specialisation]:
        return {name: specialisation(one, resamples, seed) for name, one in self._counters.items()}


def specialisation(counter: LabelCounter, resamples: int, seed: int | None) -> Specialisation:
    """The numbers from the counts."""
    counts, values = counter.result()
    rng = np.random.default_rng(seed)
    return Specialisation(
        information(counts),
        information_by_chance(counts),
        standard_error(counts, resamples, rng),
        most_information(counts, counter.choice_entropy),
        entropy(counts.positions.sum(axis=1)),
        counts,
        values,
    )
