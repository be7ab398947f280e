"""The figures, drawn from the rows of the table alone. Groups differ in marker and grey value, not only in colour."""

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure
import numpy as np
from table import as_numbers

from tf_moe.models import PAPER

DENSE, FLAT, HIERARCHICAL = "dense", "flat mixture, k = 4", "hierarchical mixture, k = 2 x 2"
STYLES = {
    DENSE: {"color": "#9e9ac8", "marker": "s"},
    FLAT: {"color": "#08306b", "marker": "o"},
    HIERARCHICAL: {"color": "#d94801", "marker": "^"},
}


class Point(NamedTuple):
    """One network over all its seeds."""

    network: str
    kind: str
    experts: int
    ops: float
    perplexities: list[float]

    @property
    def mean(self) -> float:
        return sum(self.perplexities) / len(self.perplexities)


def points(rows: Iterable[dict[str, str]]) -> list[Point]:
    """The networks as they are in the paper, without variants, in order of their number of experts."""
    by_network = defaultdict(list)
    for row in rows:
        if not row["variant"]:
            by_network[row["network"]].append(row)
    found = []
    for name, group in by_network.items():
        experts = PAPER[name].num_experts
        kind = DENSE if experts is None else HIERARCHICAL if isinstance(experts, tuple) else FLAT
        number = math.prod(experts) if isinstance(experts, tuple) else experts or 1
        ops = float(group[0]["ops_per_timestep"])
        found.append(Point(name, kind, number, ops, as_numbers(group, "test_perplexity")))
    return sorted(found, key=lambda point: (point.experts, point.mean))


def plot_family(rows: list[dict[str, str]], folder: Path, title: str) -> None:
    """Test perplexity against the number of experts, and against the compute of a time step."""
    found, floors = points(rows), as_numbers(rows, "floor")
    for axis, label in (("experts", "experts (dense networks: 1)"), ("ops", "multiply-adds a time step")):
        figure = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained")
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
        label_points(axes, found, axis)
        if floors:
            axes.axhline(floors[0], color="black", linestyle=":", label=f"floor, {floors[0]:.2f}")
        seeds = max(len(point.perplexities) for point in found)
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel=f"test perplexity ({_seeds(seeds)})", title=title)
        axes.margins(x=0.25)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
        figure.savefig(folder / f"perplexity_by_{axis}.png", dpi=120)


def label_points(axes, found: list[Point], axis: str) -> None:
    """Every point's name and value; those that share a place are listed one above the other."""
    columns = defaultdict(list)
    for point in found:
        columns[getattr(point, axis)].append(point)
    for x, column in columns.items():
        for n, point in enumerate(sorted(column, key=lambda point: point.mean)):
            axes.annotate(
                f"{point.network}  {point.mean:.2f}",
                (x, point.mean),
                xytext=(8, -3 if len(column) == 1 else 11 * (n - (len(column) - 1) / 2)),
                textcoords="offset points",
                fontsize=8,
            )


def plot_balance(rows: list[dict[str, str]], folder: Path, title: str) -> None:
    """Perplexity and balance by the weights of both losses, as heat maps."""
    cells = defaultdict(list)
    for row in rows:
        importance, load = (float(word) for word in row["variant"].replace(",", "").split()[1::2])
        cells[importance, load].append(row)
    importances, loads = (sorted({pair[n] for pair in cells}) for n in (0, 1))
    columns = ("test_perplexity", "importance_cv", "load_cv", "max_over_mean_load", "gradient_norm_max")
    figure = matplotlib.figure.Figure(figsize=(4 * len(columns), 4), layout="constrained")
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
    figure.savefig(folder / "balance.png", dpi=120)


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
    axes.set(xlabel="test perplexity", title=title)
    axes.margins(x=0.1, y=0.08)
    axes.grid(alpha=0.3)
    figure.savefig(folder / "ablations.png", dpi=120)


def _seeds(number: int) -> str:
    return "one seed" if number == 1 else f"mean of {number} seeds, lowest to highest"


PLOTS = {"family": plot_family, "balance": plot_balance, "ablations": plot_ablations}
