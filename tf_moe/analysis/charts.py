"""Charts as SVG, to stand in a page. What is darker is more, and nothing is told by colour only."""

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from tf_moe.analysis.markup import show

_DARK, _MIDDLE, _MARK, _GREY = "#08306b", "#6baed6", "#b33a00", "#767676"
# Of more experts than this a chart has no room for the names.
_NAMED = 40
_STYLE = {
    "svg.fonttype": "none",  # texts stay texts, in a font that the reader has
    "svg.hashsalt": "tf_moe",  # the same numbers give the same text
    "text.parse_math": False,  # a $ in a name is a dollar
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def load_chart(load: np.ndarray, importance: np.ndarray, title: str) -> str:
    """Share of the load (bars) and of the importance (dots) of each expert, busiest first, beside the even share."""
    order = np.argsort(-load, kind="stable")
    bars, dots = (100 * one[order] / max(one.sum(), 1e-30) for one in (load, importance))
    place, even = np.arange(len(load)), 100 / len(load)

    def draw(axes):
        # One outline of all bars, with gaps: thousands of rectangles would take seconds.
        outline = np.stack([bars, np.zeros_like(bars)], axis=1).ravel()[:-1]
        axes.stairs(outline, (place[:, None] + [-0.4, 0.4]).ravel(), fill=True, color=_MIDDLE, label="load")
        axes.plot(place, dots, "o", color=_DARK, markersize=np.clip(200 / len(load), 1.5, 5), label="importance")
        axes.axhline(even, color=_MARK, linestyle="--", label=f"even share, {even:.2g}%")
        named = len(load) <= _NAMED
        axes.set_xticks(place if named else [], order if named else [])
        axes.set(xlabel="expert, busiest first" + (" (its number)" if named else ""), ylabel="share (%)")
        axes.margins(x=0.01)
        axes.set_ylim(bottom=0)
        axes.set_axisbelow(True)
        axes.grid(axis="y", color="#dddddd")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)

    return _svg(draw, 7.2, 2.5, title)


def interval_chart(rows: Sequence[tuple[str, float, float, float]], title: str) -> str:
    """Bars of values with intervals: rows of (name, value, low, high); NaN draws no interval."""
    names, *numbers = zip(*rows, strict=True)
    value, low, high = np.array(numbers, "float64")
    place = np.arange(len(rows))

    def draw(axes):
        axes.barh(place, value, height=0.6, color=_MIDDLE)
        axes.errorbar(value, place, xerr=[value - low, high - value], fmt="none", color=_DARK, capsize=4)
        axes.axvline(0, color=_GREY, linewidth=0.8)
        axes.set_yticks(place, [_short(name, 30) for name in names])
        values = axes.secondary_yaxis("right")
        values.set_yticks(place, [show(one) for one in value])
        values.tick_params(length=0)
        values.spines[:].set_visible(False)
        axes.invert_yaxis()

    return _svg(draw, 5.5, 0.1 + 0.3 * len(rows), title)


def heat_map(
    ratios: np.ndarray,
    title: str,
    rows: str,
    columns: str,
    key: str,
    row_names: Sequence | None = None,
    column_names: Sequence | None = None,
    all_columns: bool = False,
) -> str:
    """A matrix of ratios in shades, with a key: 1/8 and less is white, 1 the middle, 8 and more dark, NaN hatched.

    Args:
        ratios: `(H, W)`, 0 or more.
        title: What it shows, for those who do not see it.
        rows: What rows are.
        columns: What columns are.
        key: What the ratios are.
        row_names: A name for each row, of which some are shown. Default: numbers.
        column_names: The same for columns.
        all_columns: Whether all names of columns are shown, sloping.
    """
    height, width = ratios.shape
    square = height == width and not all_columns
    wide = np.clip(0.3 * width, 1.8, 5.0 if square else 7.6)
    high = wide if square else np.clip(0.2 * height, 1.6, 5.0)

    def draw(axes):
        axes.patch.set(hatch="////", edgecolor="#aaaaaa")  # seen where nothing is over it
        shades = {"cmap": "Blues", "norm": "log", "vmin": 1 / 8, "vmax": 8}
        image = axes.imshow(np.clip(ratios, 1 / 8, 8), aspect="auto", interpolation="none", **shades)
        axes.spines[:].set_visible(True)
        axes.set(xlabel=columns, ylabel=rows)
        _set_names(axes.yaxis, range(height) if row_names is None else row_names)
        _set_names(axes.xaxis, range(width) if column_names is None else column_names, all_columns)
        if all_columns:
            axes.tick_params("x", rotation=45, rotation_mode="anchor")
            for name in axes.get_xticklabels():
                name.set_horizontalalignment("right")
        bar = axes.figure.colorbar(image, axes.inset_axes((1 + 0.2 / wide, 0, 0.15 / wide, 1)), label=key)
        bar.set_ticks(2.0 ** np.arange(-3, 4), labels=["1/8 or less", "1/4", "1/2", "1", "2", "4", "8 or more"])
        bar.minorticks_off()
        bar.solids.set_rasterized(True)  # of separate pieces, readers' screens would show the seams

    return _svg(draw, wide, high, title)


def _set_names(axis, names: Sequence, all_names: bool = False) -> None:
    """Names for all places on an axis, or for as many as there is room for."""
    axis.get_major_locator().set_params(integer=True, nbins=12)
    shown = range(len(names)) if all_names else [int(n) for n in axis.get_ticklocs() if 0 <= n < len(names)]
    axis.set_ticks(shown, [_short(names[n]) for n in shown])


def _short(name, most: int = 16) -> str:
    name = str(name)
    return name if len(name) <= most else name[: most - 1] + "…"


def _svg(draw: Callable, width: float, height: float, title: str) -> str:
    """What `draw(axes)` draws, on axes of that size in inches and around them, as an element of a page.

    Of one title there may be one in a page.
    """
    try:
        import matplotlib.figure
        import matplotlib.style
    except ImportError as error:
        raise ImportError("Figures take the package matplotlib: pip install 'tf_moe[plots]'.") from error
    file = io.StringIO()
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the reader has other fonts than matplotlib
        figure = matplotlib.figure.Figure(figsize=(width, height))
        draw(figure.add_axes((0, 0, 1, 1)))
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type")) | {"Title": title}
        figure.savefig(file, format="svg", bbox_inches="tight", dpi=200, metadata=metadata)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg", '<svg role="img"', 1)
    # Ids are those of the whole page, so that each figure has to have its own.
    own = rf"\g<0>{hashlib.sha256(title.encode()).hexdigest()[:8]}-"
    return re.sub("<[^>]+>", lambda tag: re.sub(r'(?<= id=")|(?<=href="#)|(?<=url\(#)', own, tag[0]), svg)
