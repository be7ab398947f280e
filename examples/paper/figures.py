"""The figures, drawn from the rows of the table alone. Groups differ in marker and grey value, not only in colour."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure
import numpy as np
from runs import DENSE_TWIN
from table import as_numbers

from tf_moe.models import PAPER

DENSE, FLAT, HIERARCHICAL = "dense", "flat mixture, k = 4", "hierarchical mixture, k = 2 x 2"
COLUMN, LINE = 40, 15  # pixels: how far apart points are labelled together, and the height of a label
STYLES = {
    DENSE: {"color": "#9e9ac8", "marker": "s"},
    FLAT: {"color": "#08306b", "marker": "o"},
    HIERARCHICAL: {"color": "#d94801", "marker": "^"},
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
    """The networks, in order of their number of experts."""
    by_network = defaultdict(list)
    for row in rows:
        by_network[row["network"], row["variant"]].append(row)
    found = []
    for (name, variant), group in by_network.items():
        experts = None if variant == DENSE_TWIN else PAPER[name].num_experts
        kind = DENSE if experts is None else HIERARCHICAL if isinstance(experts, tuple) else FLAT
        number = math.prod(experts) if isinstance(experts, tuple) else experts or 1
        ops = float(group[0]["ops_per_timestep"])
        found.append(Point(f"{name} {variant}".strip(), kind, number, ops, as_numbers(group, "test_perplexity")))
    return sorted(found, key=lambda point: (point.experts, point.mean))


def plot_family(rows: list[dict[str, str]], folder: Path, title: str) -> None:
    """Test perplexity against the number of experts, and against the compute of a time step where that differs."""
    found, floors = points(rows), as_numbers(rows, "floor")
    drawn = {"experts": "experts (dense networks: 1)", "ops": "multiply-adds a time step"}
    if max(point.ops for point in found) < 2 * min(point.ops for point in found):
        del drawn["ops"]
    for axis, label in drawn.items():
        figure = matplotlib.figure.Figure(figsize=(8, 5), dpi=120, layout="constrained")
        axes = figure.subplots()
        for kind, style in STYLES.items():
            group = [point for point in found if point.kind == kind]
            if not group:
                continue
            x = np.array([getattr(point, axis) for point in group])
            mean = np.array([point.mean for point in group])
            spread = np.array(
                [(point.mean - min(point.perplexities), max(point.perplexities) - point.mean) for point in group]
            )
            line = "--" if kind == FLAT and axis == "experts" else ""
            axes.errorbar(x, mean, spread.T, capsize=4, linestyle=line, markersize=8, label=kind, **style)
        if floors:
            axes.axhline(floors[0], color="black", linestyle=":", label=f"floor, {floors[0]:.2f}")
        ylabel = f"test perplexity ({_seeds(len(point.perplexities) for point in found)})"
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel=ylabel, title=title)
        axes.margins(x=0.3, y=0.12)
        axes.grid(alpha=0.3, which="both")
        for which in (axes.xaxis, axes.yaxis):
            which.set_major_formatter("{x:,g}")
            which.set_minor_formatter("{x:,g}")
        axes.tick_params(which="minor", labelsize=7)
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


def plot_balance(rows: list[dict[str, str]], folder: Path, title: str) -> None:
    """Perplexity, balance and gradient by the weights of both losses, a page of heat maps for each network."""
    networks = defaultdict(list)
    for row in rows:
        networks[row["network"]].append(row)
    for network, group in networks.items():
        plot_balance_of(group, folder / f"balance_{network}.png", f"{network}: {title}")


def plot_balance_of(rows: list[dict[str, str]], file: Path, title: str) -> None:
    """The page of one network; each number is the mean over its seeds."""
    cells = defaultdict(list)
    for row in rows:
        importance, load = (float(word) for word in row["variant"].replace(",", "").split()[1::2])
        cells[importance, load].append(row)
    importances, loads = (sorted({pair[n] for pair in cells}) for n in (0, 1))
    columns = ("test_perplexity", "importance_cv", "load_cv", "max_over_mean_load", "gradient_norm_max")
    figure = matplotlib.figure.Figure(figsize=(3.2 * len(columns), 3.6), layout="constrained")
    figure.suptitle(title)
    for axes, column in zip(figure.subplots(1, len(columns)), columns, strict=True):
        grid = np.full((len(importances), len(loads)), np.nan)
        for (importance, load), group in cells.items():
            grid[importances.index(importance), loads.index(load)] = np.mean(as_numbers(group, column))
        axes.imshow(grid, cmap="Greys", norm="log")
        middle = np.sqrt(np.nanmin(grid) * np.nanmax(grid))
        for (i, j), value in np.ndenumerate(grid):
            if np.isfinite(value):
                color = "white" if value > middle else "black"
                axes.text(j, i, f"{value:.3g}", ha="center", va="center", color=color, fontsize=9)
        axes.set(title=column, xlabel="load_weight", ylabel="importance_weight")
        axes.set_xticks(range(len(loads)), [f"{x:g}" for x in loads])
        axes.set_yticks(range(len(importances)), [f"{x:g}" for x in importances])
    figure.savefig(file, dpi=120)


def plot_ablations(rows: list[dict[str, str]], folder: Path, title: str) -> None:
    """Test perplexity of each variant, best first."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["network"], row["variant"]] += as_numbers([row], "test_perplexity")
    order = sorted(groups, key=lambda key: np.mean(groups[key]), reverse=True)
    figure = matplotlib.figure.Figure(figsize=(8, 1 + 0.4 * len(order)), layout="constrained")
    axes = figure.subplots()
    for y, key in enumerate(order):
        values = groups[key]
        mean = float(np.mean(values))
        axes.errorbar(
            mean, y, xerr=[[mean - min(values)], [max(values) - mean]], marker="o", color="#08306b", capsize=4
        )
        axes.annotate(f"{mean:.2f}", (mean, y), xytext=(0, 6), textcoords="offset points", fontsize=8, ha="center")
    axes.set_yticks(range(len(order)), [f"{network}: {variant}" for network, variant in order])
    axes.set(xlabel=f"test perplexity ({_seeds(map(len, groups.values()))})", title=title)
    axes.margins(x=0.1, y=0.08)
    axes.grid(alpha=0.3)
    figure.savefig(folder / "ablations.png", dpi=120)


def _seeds(numbers: Iterable[int]) -> str:
    """What a point and its bar are, given how many seeds each has."""
    numbers = sorted(set(numbers))
    if numbers == [1]:
        return "one seed"
    return f"mean of {' to '.join(map(str, {numbers[0]: 0, numbers[-1]: 0}))} seeds, bars from lowest to highest"


PLOTS = {"family": plot_family, "balance": plot_balance, "ablations": plot_ablations}
