"""What each expert is for, as a page to read: one HTML file that needs nothing else."""

import html
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path

import numpy as np

from tf_moe import checks
from tf_moe.analysis.markup import document, paragraph
from tf_moe.analysis.top_inputs import TopInput


def write_top_inputs(
    file: str | PathLike,
    tops: Sequence[Sequence[TopInput]],
    words_of: Callable[[np.ndarray], Iterable[str]],
    title: str = "What each expert is for",
    separator: str = " ",
    context: int = 10,
) -> None:
    """Write the inputs with the highest gate values of each expert, in context, to an HTML page.

    Args:
        file: Path of the page.
        tops: What `top_inputs` returned.
        words_of: The text of each id of a row, in order; for padding "".
        title: Heading of the page.
        separator: What stands between two words. Default a space; "" for word pieces that bring their own.
        context: Words shown on either side. Default 10.

    Raises:
        ValueError: If `words_of` does not return a string for each id, or `context` is no integer of at least 0.
        TypeError: If `title` is no text.

    Example:

    >>> tops = tf_moe.analysis.top_inputs(model, dataset, "moe")
    >>> words = np.array(["", *(f"word-{n}" for n in range(1, 50))])
    >>> tf_moe.analysis.write_top_inputs("experts.html", tops, lambda ids: words[ids])
    """
    checks.instance("title", title, str, "Pass a text.")
    context = checks.integer("context", context, least=0)
    sections, empty = [], []
    for number, top in enumerate(tops):
        if not top:
            empty.append(str(number))
            continue
        sections.append(f'<h2 id="{number}">Expert {number}</h2>\n{contexts(top, words_of, separator, context)}')
    if empty:
        sections.append(paragraph(f"No input went to expert {', '.join(empty)}."))
    intro = paragraph("The inputs with the highest gate values of each expert, in their context; first the gate value.")
    Path(file).write_text(document(title, [intro, *sections]), encoding="utf-8")


def contexts(
    top: Sequence[TopInput], words_of: Callable[[np.ndarray], Iterable[str]], separator: str, context: int
) -> str:
    """A table of inputs, each with its gate value and the words around it."""
    rows = "\n".join(_row(one, words_of, separator, context) for one in top)
    return f"<table>\n{rows}\n</table>"


def _row(one: TopInput, words_of, separator: str, context: int) -> str:
    words = list(words_of(one.ids))
    if len(words) != len(one.ids) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"words_of must return a string for each of {len(one.ids)} ids. Received: {words!r}.")
    parts = words[max(0, one.position - context) : one.position], words[one.position + 1 :][:context]
    before, after = (html.escape(separator.join(filter(None, part))) for part in parts)
    word = html.escape(words[one.position])
    return (
        f'<tr><td class="gate">{one.gate:.3f}</td><td class="before">{before}</td>'
        f'<td class="after"><b>{word}</b>{html.escape(separator)}{after}</td></tr>'
    )
