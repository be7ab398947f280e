"""Plots of training and of the use of experts. Lines differ in style and marker, not in colour alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np

__all__ = ["plot_load", "plot_perplexity"]

# Dark to light in grey as well, and with a dash and a marker of its own for each.
_STYLES = (
    {"color": "#08306b", "linestyle": "-", "marker": "o"},
    {"color": "#d94801", "linestyle": "--", "marker": "s"},
    {"color": "#41ab5d", "linestyle": "-.", "marker": "^"},
    {"color": "#9e9ac8", "linestyle": ":", "marker": "D"},
)


def plot_perplexity(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path, title: str = "") -> None:
    """Perplexity by training step, a line for each model.

    Args:
        curves: Steps and perplexities of each model by its name, up to four.
        path: File to write; its suffix is the format.
        title: Title of the plot.

    Raises:
        ValueError: If there is no curve, or more than four, or one has no points, or the format is unknown.

    Example:

    >>> import tf_moe.analysis.plots
    >>> curves = {"moe": ([100, 200], [90.0, 70.0]), "dense": ([100, 200], [95.0, 80.0])}
    >>> tf_moe.analysis.plots.plot_perplexity(curves, pathlib.Path("perplexity.png"))
    """
    if not 1 <= len(curves) <= len(_STYLES):
        raise ValueError(f"curves must be one to {len(_STYLES)}. Received: {len(curves)} curves, {list(curves)}.")
    if empty := [name for name, (steps, _) in curves.items() if not len(steps)]:
        raise ValueError(f"Every curve needs points. Received: none for {empty}.")
    figure = matplotlib.figure.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for (name, (steps, perplexity)), style in zip(curves.items(), _STYLES, strict=False):
        axes.plot(steps, perplexity, label=f"{name} (last {perplexity[-1]:.1f})", **style)
    axes.set(xlabel="training step", ylabel="validation perplexity", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def plot_load(load: np.ndarray, path: Path, title: str = "") -> None:
    """Share of the assignments that each expert receives, busiest first, beside the even share.

    Args:
        load: `(E,)`, assignments of each expert.
        path: File to write; its suffix is the format.
        title: Title of the plot.

    Raises:
        ValueError: If load is no vector of numbers, 0 or more, or the format is unknown.

    Example:

    >>> import tf_moe.analysis.plots
    >>> usage = tf_moe.analysis.measure_usage(model, dataset)["moe"]
    >>> tf_moe.analysis.plots.plot_load(usage.load, pathlib.Path("load.png"))
    """
    load = np.asarray(load)
    if load.ndim != 1 or not load.size or not (np.isfinite(load) & (load >= 0)).all():
        raise ValueError(f"load must be numbers, 0 or more, one for each expert. Received: load={load!r}.")
    share = np.sort(load)[::-1] / (load.sum() or 1)
    even = 1 / len(load)
    figure = matplotlib.figure.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.bar(np.arange(len(load)), 100 * share, width=0.8, color="#6baed6", edgecolor="#08306b", linewidth=0.4)
    axes.axhline(100 * even, color="#d94801", linestyle="--", label=f"even share, {100 * even:.2g}%")
    axes.set(xlabel="expert, busiest first", ylabel="share of all assignments (%)", title=title)
    axes.legend()
    figure.savefig(path, dpi=120)
