"""The figures of each study, drawn from the rows of the table alone."""

from collections import defaultdict
from pathlib import Path

import matplotlib
import matplotlib.colors
import matplotlib.figure
import numpy as np
from perplexity import FLAT, STYLES, describe_seeds, draw_perplexity, points
from table import as_numbers


def plot_family(rows: list[dict[str, str]], folder: Path, title: str) -> None:
    """Test perplexity against the number of experts, and against the compute of a time step where that differs."""
    found, floors = points(rows), as_numbers(rows, "floor")
    draw_perplexity(found, "experts", [FLAT], floors, folder, title)
    if max(point.ops for point in found) >= 2 * min(point.ops for point in found):
        draw_perplexity(found, "ops", [], floors, folder, title)


def plot_budgets(rows: list[dict[str, str]], folder: Path, title: str) -> None:
    """Test perplexity against the compute of a time step, a line for each kind of network."""
    draw_perplexity(points(rows), "ops", list(STYLES), as_numbers(rows, "floor"), folder, title)


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
        high = max(np.nanmax(grid), 1e-9)
        low = max(np.nanmin(grid), 1e-3 * high)  # perfect balance is 0
        # The lowest is not white, which is what pairs that were not run are.
        norm = matplotlib.colors.LogNorm(low / (high / low) ** 0.3 * 0.999, high)
        axes.imshow(np.maximum(grid, low), cmap="Greys", norm=norm)
        middle = np.sqrt(low * high)
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
    plot_variants(rows, {"test_perplexity": "test perplexity"}, folder / "ablations.png", title)


def plot_gates(rows: list[dict[str, str]], folder: Path, title: str) -> None:
    """Test perplexity and balance with each gate, the best perplexity first."""
    columns = {"test_perplexity": "test perplexity", "max_over_mean_load": "max / mean load"}
    columns["dropped_at_1.25"] = "dropped at capacity 1.25"
    plot_variants(rows, columns, folder / "gates.png", title)


def plot_variants(rows: list[dict[str, str]], columns: dict[str, str], file: Path, title: str) -> None:
    """A panel for each column of the table, with its label; a line for each variant, the lowest mean on top."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["network"], row["variant"]].append(row)
    first = next(iter(columns))
    order = sorted(groups, key=lambda key: np.mean(as_numbers(groups[key], first)), reverse=True)
    size = (4 + 4 * len(columns), 1 + 0.4 * len(order))
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, (column, label) in zip(panels, columns.items(), strict=True):
        for y, key in enumerate(order):
            if not (values := as_numbers(groups[key], column)):
                continue  # a dense network has no load
            mean = float(np.mean(values))
            spread = [[mean - min(values)], [max(values) - mean]]
            axes.errorbar(mean, y, xerr=spread, marker="o", color="#08306b", capsize=4)
            text = f"{mean:,.0f}" if mean >= 100 else f"{mean:.2f}"
            axes.annotate(text, (mean, y), xytext=(0, 6), textcoords="offset points", fontsize=8, ha="center")
        axes.set(xlabel=label)
        axes.margins(x=0.15, y=0.08)
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(order)), [f"{network}: {variant}" for network, variant in order])
    panels[0].set_xlabel(f"{columns[first]} ({describe_seeds(map(len, groups.values()))})")
    figure.savefig(file, dpi=120)


def plot_low_resource(rows: list[dict[str, str]], folder: Path, title: str) -> None:
    """Test perplexity by the share of the text, as a ratio to that of the network with the fewest weights.

    On the left networks as they are, on the right what was done against overfitting.
    """
    groups = defaultdict(dict)
    for row in rows:
        group = groups[row["network"], row["variant"]]
        group.setdefault(float(row["fraction"]), []).extend(as_numbers([row], "test_perplexity"))
    smallest = min((row for row in rows if not row["variant"]), key=lambda row: int(row["parameters"]))["network"]
    treated = {network for network, variant in groups if variant and network != smallest}
    panels = {
        "networks": [key for key in groups if not key[1]],
        "against overfitting": [key for key in groups if key[0] in treated or (key[0] == smallest and key[1])],
    }
    figure = matplotlib.figure.Figure(figsize=(11, 5), dpi=120, layout="constrained")
    figure.suptitle(title)
    for axes, (name, keys) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        for n, key in enumerate(keys):
            fractions = sorted(groups[key])
            reference = [np.mean(groups[smallest, ""][fraction]) for fraction in fractions]
            values = [
                np.array(groups[key][fraction]) / base for fraction, base in zip(fractions, reference, strict=True)
            ]
            mean = np.array([value.mean() for value in values])
            spread = [mean - [value.min() for value in values], [value.max() for value in values] - mean]
            label, grey = " ".join(filter(None, key)), 0.7 * n / max(1, len(keys) - 1)
            color = matplotlib.colormaps["viridis"](grey)
            axes.errorbar(fractions, mean, spread, marker="os^Dv<>P"[n % 8], color=color, capsize=3, label=label)
        axes.set(xscale="log", xlabel="share of the training text", title=name)
        axes.set_xticks(fractions, [f"{fraction:.3g}" for fraction in fractions])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel(
        f"test perplexity / {smallest}'s ({describe_seeds(len(v) for g in groups.values() for v in g.values())})"
    )
    figure.savefig(folder / "low_resource.png")


PLOTS = {
    "family": plot_family,
    "budgets": plot_budgets,
    "balance": plot_balance,
    "ablations": plot_ablations,
    "gates": plot_gates,
    "low_resource": plot_low_resource,
}
