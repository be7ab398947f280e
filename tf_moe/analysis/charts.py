"""Charts as SVG, drawn from the numbers alone. What is darker is more, and nothing is told by colour only."""

import base64
import html
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_moe.analysis.markup import show

_DARK, _MIDDLE, _MARK, _GREY = "#08306b", "#6baed6", "#b33a00", "#767676"
# From white to dark blue, darker all the way also in grey.
_SCALE = np.array([[255, 255, 255], [222, 235, 247], [158, 202, 225], [66, 146, 198], [8, 81, 156], [8, 48, 107]])
_WIDTH, _LEFT, _RIGHT, _HIGHEST = 720, 60, 16, 480


def shades(values: np.ndarray) -> np.ndarray:
    """Uint8 `(H, W, 3)`, colours of values `(H, W)` from 0 (white) to 1 (dark); NaN is grey."""
    place = np.nan_to_num(np.clip(values, 0, 1)) * (len(_SCALE) - 1)
    knots = np.arange(len(_SCALE))
    colours = np.stack([np.interp(place, knots, channel) for channel in _SCALE.T], axis=-1)
    colours[np.isnan(values)] = 200
    return np.round(colours).astype("uint8")


def eighths(ratio: np.ndarray) -> np.ndarray:
    """Ratios from 1/8 to 8 as 0 to 1, on a logarithmic scale; NaN stays."""
    known = np.where(np.isnan(ratio), 1, ratio)
    return np.where(np.isnan(ratio), np.nan, (np.log2(np.clip(known, 1 / 8, 8)) + 3) / 6)


def png(colours: np.ndarray) -> bytes:
    """A picture of colours `(H, W, 3)`, a pixel each."""
    return tf.io.encode_png(colours).numpy()


def load_chart(load: np.ndarray, importance: np.ndarray, title: str) -> str:
    """Share of the load (bars) and of the importance (dots) of each expert, busiest first, beside the even share."""
    order = np.argsort(-load, kind="stable")
    bars, dots = (100 * one[order] / max(one.sum(), 1e-30) for one in (load, importance))
    even, high, top = 100 / len(load), 190, 34
    most = 1.08 * max(bars.max(), dots.max(), even)
    step = (_WIDTH - _LEFT - _RIGHT) / len(load)

    def y(value):
        return top + high * (1 - value / most)

    parts = [_scale(most, y, "%")]
    for n, (expert, bar, dot) in enumerate(zip(order, bars, dots, strict=True)):
        x = _LEFT + n * step
        parts.append(
            f'<rect x="{x + step * 0.1:.2f}" y="{y(bar):.2f}" width="{step * 0.8:.2f}" '
            f'height="{y(0) - y(bar):.2f}" fill="{_MIDDLE}"><title>expert {expert}: {bar:.2f}% of the load, '
            f"{dot:.2f}% of the importance</title></rect>"
        )
        radius = min(3.5, max(1.2, step * 0.3))
        parts.append(f'<circle cx="{x + step / 2:.2f}" cy="{y(dot):.2f}" r="{radius:.1f}" fill="{_DARK}"/>')
        if len(load) <= 40:
            parts.append(_text(x + step / 2, y(0) + 16, str(expert), "middle", _GREY))
    right = _WIDTH - _RIGHT
    parts.append(
        f'<path d="M{_LEFT} {y(even):.2f}H{right}" stroke="{_MARK}" stroke-width="1.5" stroke-dasharray="6 4"/>'
    )
    legend = (
        f'<rect x="{_LEFT}" y="8" width="12" height="12" fill="{_MIDDLE}"/>{_text(_LEFT + 18, 19, "load")}'
        f'<circle cx="{_LEFT + 76}" cy="14" r="4" fill="{_DARK}"/>{_text(_LEFT + 86, 19, "importance")}'
        f'<path d="M{_LEFT + 184} 14h28" stroke="{_MARK}" stroke-width="1.5" stroke-dasharray="6 4"/>'
        + _text(_LEFT + 218, 19, f"even share, {even:.2g}%")
    )
    label = "expert, busiest first" + (" (its number)" if len(load) <= 40 else "")
    parts.append(_text((_LEFT + right) / 2, y(0) + 36, label, "middle"))
    return _svg(top + high + 44, title, [legend, *parts])


def interval_chart(rows: Sequence[tuple[str, float, float, float]], title: str) -> str:
    """Bars of values with intervals: rows of (name, value, low, high); NaN draws no interval."""
    left, line, right = 150, 30, _WIDTH - 90
    most = 1.05 * max([high if high == high else value for _, value, _, high in rows] + [1e-9])
    least = min([low if low == low else value for _, value, low, _ in rows] + [0.0])

    def x(value):
        return left + (right - left) * (value - least) / (most - least)

    parts = []
    for n, (name, value, low, high) in enumerate(rows):
        y = 10 + line * n
        start, end = sorted((x(0), x(value)))
        parts.append(_text(left - 8, y + 17, _short(name, 20), "end"))
        parts.append(
            f'<rect x="{start:.2f}" y="{y + 3}" width="{end - start:.2f}" height="{line - 10}" fill="{_MIDDLE}"/>'
        )
        if low == low:
            parts.append(
                f'<path d="M{x(low):.2f} {y + 13}H{x(high):.2f}M{x(low):.2f} {y + 7}v12M{x(high):.2f} {y + 7}v12" '
                f'stroke="{_DARK}" stroke-width="2" fill="none"/>'
            )
        parts.append(_text(x(max(value, high if high == high else value, 0)) + 8, y + 17, show(value)))
    bottom = 10 + line * len(rows)
    parts.append(f'<path d="M{x(0):.2f} 6V{bottom}" stroke="{_GREY}"/>')
    return _svg(bottom + 8, title, parts)


def heat_map(
    values: np.ndarray,
    title: str,
    rows: str,
    columns: str,
    ends: tuple[str, str],
    row_names: Sequence | None = None,
    column_names: Sequence | None = None,
    all_columns: bool = False,
) -> str:
    """A matrix of values from 0 to 1 in shades, NaN in grey, with a key.

    Args:
        values: `(H, W)`.
        title: What it shows, for those who do not see it.
        rows: What rows are.
        columns: What columns are.
        ends: What the lightest and the darkest shade mean.
        row_names: A name for each row, of which up to 16 are shown. Default: numbers.
        column_names: The same for columns.
        all_columns: Whether all names of columns are shown, sloping.
    """
    height, width = values.shape
    row_names = range(height) if row_names is None else row_names
    column_names = range(width) if column_names is None else column_names
    square = height == width and not all_columns
    wide = min(_HIGHEST if square else _WIDTH - _LEFT - _RIGHT, max(width * 24, 240))
    high = wide if square else min(_HIGHEST, max(height * 14, 60))
    below = 12 + 5.5 * max(len(_short(name, 16)) for name in column_names) if all_columns else 20
    top = 44
    picture = base64.b64encode(png(shades(values))).decode()
    parts = [
        f'<image x="{_LEFT}" y="{top}" width="{wide}" height="{high}" preserveAspectRatio="none" '
        f'style="image-rendering: pixelated" href="data:image/png;base64,{picture}"/>',
        f'<rect x="{_LEFT}" y="{top}" width="{wide}" height="{high}" fill="none" stroke="{_GREY}"/>',
    ]
    key = base64.b64encode(png(shades(np.linspace(0, 1, 64)[None]))).decode()
    start = _LEFT + 7.2 * len(ends[0]) + 8
    parts.append(_text(_LEFT, 20, ends[0]))
    parts.append(
        f'<image x="{start}" y="8" width="120" height="14" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{key}"/><rect x="{start}" y="8" width="120" height="14" fill="none" '
        f'stroke="{_GREY}"/>{_text(start + 128, 20, ends[1])}'
    )
    for n in _ticks(height):
        parts.append(_text(_LEFT - 6, top + high * (n + 0.5) / height + 4, str(row_names[n]), "end", _GREY))
    middle = top + high / 2
    parts.append(f'<g transform="rotate(-90 14 {middle})">{_text(14, middle, rows, "middle")}</g>')
    for n in range(width) if all_columns else _ticks(width):
        x = _LEFT + wide * (n + 0.5) / width
        if all_columns:
            y = top + high + 12
            name = _text(x, y, _short(column_names[n], 16), "end")
            parts.append(f'<g transform="rotate(-45 {x:.1f} {y})">{name}</g>')
        else:
            parts.append(_text(x, top + high + 16, str(column_names[n]), "middle", _GREY))
    parts.append(_text(_LEFT + wide / 2, top + high + below + 16, columns, "middle"))
    return _svg(round(top + high + below + 24), title, parts)


def _short(name, most: int) -> str:
    name = str(name)
    return name if len(name) <= most else name[: most - 1] + "…"


def _ticks(number: int) -> range:
    """Up to 16 round numbers below this."""
    step = next(s * 10**power for power in range(9) for s in (1, 2, 5) if s * 10**power * 16 >= number)
    return range(0, number, step)


def _scale(most: float, y, unit: str) -> str:
    """Lines and numbers for values from 0."""
    step = next(s * 10.0**power for power in range(-6, 9) for s in (1, 2, 5) if s * 10.0**power * 5 >= most)
    lines = []
    for n in range(int(most / step) + 1):
        at = y(n * step)
        lines.append(f'<path d="M{_LEFT} {at:.2f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        lines.append(_text(_LEFT - 6, at + 4, f"{n * step:.6g}{unit}", "end", _GREY))
    return "".join(lines)


def _text(x: float, y: float, content: str, anchor: str = "start", colour: str = "#222") -> str:
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}"{place} fill="{colour}">{html.escape(content)}</text>'


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    title = html.escape(title)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}">\n'
        f"<title>{title}</title>\n{body}\n</svg>"
    )
