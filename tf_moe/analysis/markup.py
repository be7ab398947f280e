"""Pieces of HTML pages that need nothing else: no script, no other file, no network."""

import html
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

# Light, in dark on white, with colours that differ in grey too; wide pieces scroll by themselves on narrow screens.
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff; }
h1, h2, h3, h4 { line-height: 1.2; }
h2 { margin-top: 2.5em; padding-top: 0.5em; border-top: 2px solid #08306b; }
h3 { margin-top: 2em; }
h4 { margin: 1.2em 0 0.3em; }
a { color: #08519c; }
p, li, figcaption { max-width: 48em; }
figure { margin: 1em 0; }
figcaption { color: #444; padding: 0.3em 0; }
.scroll { overflow-x: auto; }
svg { display: block; max-width: max(100%, 40em); height: auto; }
table { border-collapse: collapse; }
td, th { padding: 0.1em 0.3em; vertical-align: top; }
table.numbers { font-variant-numeric: tabular-nums; }
table.numbers td, table.numbers th { padding: 0.2em 0.8em 0.2em 0; text-align: right; border-bottom: 1px solid #ddd; }
table.numbers td, table.numbers tbody th { white-space: nowrap; }
table.numbers thead th { vertical-align: bottom; }
table.numbers .text { text-align: left; }
td.gate { color: #555; }
td.before { text-align: right; width: 50%; }
td.after { width: 50%; }
b { background: #fde9b8; }
dt { font-weight: bold; }
dd { margin: 0 0 0.6em 1.5em; max-width: 46em; }
@media (max-width: 40em) { body { margin: 1em auto; } h2 { margin-top: 1.5em; } }
"""


def document(title: str, parts: Sequence[str]) -> str:
    """A page with a heading."""
    title = html.escape(title)
    head = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style></head>\n'
    )
    return head + "\n".join([f"<body>\n<main>\n<h1>{title}</h1>", *parts, "</main>\n</body>\n</html>\n"])


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], caption: str = "") -> str:
    """A table of rows, with a column for each key of `columns`, headed by its value. The first names the row."""
    is_text = {key: any(isinstance(row.get(key), str) for row in rows) for key in columns}

    def cell(tag: str, key: str, content: str, extra: str = "") -> str:
        return f"<{tag}{extra}{' class=text' if is_text[key] else ''}>{content}</{tag}>"

    first = next(iter(columns))
    heads = "".join(cell("th", key, html.escape(name), ' scope="col"') for key, name in columns.items())
    lines = []
    for row in rows:
        shown = {key: html.escape(show(row.get(key))) for key in columns}
        cells = [cell("th", first, shown[first], ' scope="row"')]
        cells += [cell("td", key, content) for key, content in shown.items() if key != first]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    content = f'<table class="numbers">\n<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table>'
    return figure(content, caption)


def figure(content: str, caption: str) -> str:
    """A drawing or a table with what it shows; what is too wide for the screen scrolls, by the keyboard too."""
    caption = f"<figcaption>{html.escape(caption)}</figcaption>\n" if caption else ""
    return f'<figure>{caption}<div class="scroll" tabindex="0">{content}</div></figure>'


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def show(value: Any) -> str:
    """A value for a reader: whole numbers whole, others with three decimals or fewer, nothing for None and NaN."""
    if value is None or value != value:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral):
        return f"{value:,}"
    digits = 3 if abs(value) < 9.9995 else 1 if abs(value) < 999.95 else 0
    return f"{value:z,.{digits}f}"
