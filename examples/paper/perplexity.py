"""Test perplexity by number of experts or by compute: every network a point with its name.

Groups differ in marker and grey value, not only in colour.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure
import matplotlib.ticker
import numpy as np
from runs import DENSE_TWIN
from table import as_numbers

from tf_moe.models import PAPER

DENSE, FLAT, HIERARCHICAL = "dense", "flat mixture, k = 4", "hierarchical mixture, k = 2 x 2"
COLUMN, LINE = 40, 15  # pixels: how far apart points are labelled together, and the height of a label
STYLES = {
    DENSE: {"color": "#9e9ac8", "marker": "s", "markersize": 5},
    FLAT: {"color": "#08306b", "marker": "o", "markersize": 8},
    HIERARCHICAL: {"color": "#d94801", "marker": "^", "markersize": 8},
}


class Point(NamedTuple):
    """One network over all its seeds."""

    label: str
    kind: str
    experts: int
    ops: float
    perplexities: list[float]

    @property
    def mean(self) -> float:
        return sum(self.perplexities) / len(self.perplexities)


def points(rows: Iterable[dict[str, str]]) -> list[Point]:
    """The networks, in order of their number of experts; with widths in their names where there are several."""
    by_network = defaultdict(list)
    for row in rows:
        by_network[row["network"], row["variant"], row["width"]].append(row)
    several = len({row["width"] for row in rows}) > 1
    found = []
    for (name, variant, width), group in by_network.items():
        experts = None if variant == DENSE_TWIN else PAPER[name].num_experts
        kind = DENSE if experts is None else HIERARCHICAL if isinstance(experts, tuple) else FLAT
        number = math.prod(experts) if isinstance(experts, tuple) else experts or 1
        ops = float(group[0]["ops_per_timestep"])
        label = " ".join(filter(None, (name, variant, f"width {width}" if several else "")))
        found.append(Point(label, kind, number, ops, as_numbers(group, "test_perplexity")))
    return sorted(found, key=lambda point: (point.experts, point.mean))


def draw_perplexity(
    found: list[Point], axis: str, joined: list[str], floors: list[float], folder: Path, title: str
) -> None:
    """Every network with its spread over seeds; the kinds that are `joined` by a line."""
    figure = matplotlib.figure.Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for kind, style in STYLES.items():
        group = sorted((point for point in found if point.kind == kind), key=lambda point: getattr(point, axis))
        if not group:
            continue
        x = np.array([getattr(point, axis) for point in group])
        mean = np.array([point.mean for point in group])
        spread = np.array(
            [(point.mean - min(point.perplexities), max(point.perplexities) - point.mean) for point in group]
        )
        line = "--" if kind in joined else ""
        axes.errorbar(x, mean, spread.T, capsize=4, linestyle=line, label=kind, **style)
    if floors:
        axes.axhline(floors[0], color="black", linestyle=":", label=f"floor, {floors[0]:.2f}")
    xlabel = {"experts": "experts (dense networks: 1)", "ops": "multiply-adds a time step"}[axis]
    ylabel = f"test perplexity\n({describe_seeds(len(point.perplexities) for point in found)})"
    axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel, title=title)
    axes.margins(x=0.4, y=0.12)  # room for names on both sides
    axes.grid(alpha=0.3, which="both")
    for which in (axes.xaxis, axes.yaxis):
        which.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        which.set_major_formatter("{x:,.0f}")
        which.set_minor_formatter("")
    if axis == "experts":
        axes.set_xticks(sorted({point.experts for point in found}))
        axes.set_xticks([], minor=True)
    figure.legend(loc="outside lower center", ncols=4)
    label_points(figure, axes, [(getattr(point, axis), point) for point in found])
    figure.savefig(folder / f"perplexity_by_{axis}.png")


def label_points(figure, axes, found: list[tuple[float, Point]]) -> None:
    """Every point's name and value: beside those that stand close together, one above the other."""
    figure.draw_without_rendering()  # only now it is known where on the page things are
    places = sorted((*axes.transData.transform((x, point.mean)), point) for x, point in found)
    columns = [[places[0]]]
    for before, place in itertools.pairwise(places):
        if place[0] - before[0] > COLUMN:
            columns.append([])
        columns[-1].append(place)
    for column in columns:
        column.sort(key=lambda place: place[1])
        is_first = column is columns[0]  # labelled on its left, where nothing else stands
        beside = min(x for x, _, _ in column) - 14 if is_first else max(x for x, _, _ in column) + 14
        wanted = np.array([y for _, y, _ in column])
        heights = np.maximum.accumulate(wanted - LINE * np.arange(len(column))) + LINE * np.arange(len(column))
        heights += (wanted - heights).mean()
        for (x, y, point), height in zip(column, heights, strict=True):
            axes.annotate(
                f"{point.label}  {point.mean:.2f}",
                (x, y),
                xycoords="figure pixels",
                xytext=(beside, height),
                textcoords="figure pixels",
                ha="right" if is_first else "left",
                va="center",
                fontsize=8,
                arrowprops={"arrowstyle": "-", "linewidth": 0.4, "shrinkB": 3},
            )


def describe_seeds(numbers: Iterable[int]) -> str:
    """What a point and its bar are, given how many seeds each has."""
    numbers = sorted(set(numbers))
    if numbers == [1]:
        return "one seed"
    seeds = " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))
    return f"mean of {seeds} seeds, bars from lowest to highest"
