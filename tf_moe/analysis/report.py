"""What was found of a model's experts, as one page to read: figures, tables, text, examples."""

import html
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from tf_moe import checks
from tf_moe.analysis import sections
from tf_moe.analysis.findings import Findings
from tf_moe.analysis.markup import document, paragraph, table
from tf_moe.analysis.monitor import ExpertMonitor
from tf_moe.analysis.stability import Stability

_TERMS = {
    "Load": "number of positions sent to an expert, those that found no room there included.",
    "Importance": "sum of an expert's gate values. CV is the standard deviation over the mean: 0 where all are alike.",
    "Dead": "an expert that no position was sent to.",
    "Effective experts": "how many, used alike, would be as even: e to the entropy of the mean gate values.",
    "Entropy of a position": "how evenly it trusts its experts, in nats, 0 with one; the mean over the positions.",
    "Information": "what one of a position's experts tells of its label: mutual information in nats, estimated from "
    "counts. By chance: the same for shuffled labels, which is what the estimate is too high by where there is nothing "
    "to find. Above chance: the difference, with its 95% interval from resampled rows.",
    "Share": "information above chance, of the most that it could be for these loads and labels: 0 is chance, 1 that "
    "experts and label determine each other as far as they can.",
    "Together, by chance": "how often two experts would be chosen for one position if each had as many partners as it "
    "has, but did not mind which.",
}


def write_report(
    file: str | PathLike,
    findings: Mapping[str, Findings],
    words_of: Callable[[np.ndarray], Iterable[str]] | None = None,
    title: str = "How the experts are used",
    stability: Mapping[str, Stability] | None = None,
    history: ExpertMonitor | None = None,
    separator: str = " ",
    context: int = 8,
    experts: int = 64,
) -> None:
    """Write all that was found to one HTML page, which needs no other file, no script and no network.

    Args:
        file: Path of the page.
        findings: What `measure_all` returned.
        words_of: As in `write_top_inputs`: the text of each id of a row. Default None: the ids themselves.
        title: Heading of the page.
        stability: What `measure_stability` returned, for a section on how alike another model routes. Default none.
        history: The callback that watched the training, for a picture of the load over time. Default none.
        separator: What stands between two words. Default a space; "" for word pieces that bring their own.
        context: Words shown on either side of a top input. Default 8.
        experts: How many experts of a layer, the busiest, are described one by one. Default 64.

    Raises:
        ValueError: If nothing was found, `words_of` does not return a string for each id, or a number is out of range.
        TypeError: If `title` is no text, `findings` no dictionary, or `history` no `ExpertMonitor`.
        ImportError: Without matplotlib, which draws the figures: `pip install 'tf_moe[plots]'`.

    Example:

    >>> words = np.array(["", *(f"word-{n}" for n in range(1, 50))])
    >>> labels = {"token": tf_moe.analysis.labels.tokens(words), "place": tf_moe.analysis.labels.places()}
    >>> findings = tf_moe.analysis.measure_all(model, dataset, labels, ids_of=lambda inputs: inputs)
    >>> tf_moe.analysis.write_report("experts.html", findings, lambda ids: words[ids])
    """
    checks.instance("title", title, str, "Pass a text.")
    context = checks.integer("context", context, least=0)
    experts = checks.integer("experts", experts, least=0)
    checks.instance("findings", findings, Mapping, "Pass what measure_all returned.")
    if not findings:
        raise ValueError(f"findings must be of a layer or more. Received: findings={findings!r}.")
    if history is not None:
        checks.instance("history", history, ExpertMonitor, "Pass the callback that watched the training.")
    words_of = words_of or (lambda ids: [str(n) for n in ids])
    parts = [_summary(findings)]
    for number, (name, found) in enumerate(findings.items()):
        parts.append(f'<section id="layer{number}">\n<h2>Layer {html.escape(name)}</h2>')
        parts += sections.of_usage(name, found)
        if history is not None and name in history.usage:
            parts.append(sections.of_history(name, history))
        if found.specialisation:
            parts += sections.of_specialisation(name, found)
        if found.co_activation is not None:
            parts += sections.of_co_activation(name, found.co_activation)
        if stability and name in stability:
            parts += sections.of_stability(stability[name])
        if experts and (found.tops is not None or found.specialisation):
            parts += sections.of_experts(found, words_of, separator, context, experts)
        parts.append("</section>")
    terms = "\n".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in _TERMS.items())
    parts.append(f'<section id="terms">\n<h2>What the words mean</h2>\n<dl>\n{terms}\n</dl></section>')
    Path(file).write_text(document(title, parts), encoding="utf-8")


def _summary(findings: Mapping[str, Findings]) -> str:
    rows = []
    for name, found in findings.items():
        row = {"layer": name, "experts": sections.levels(found.num_experts), "k": sections.levels(found.k)}
        row |= found.usage.figures() | {"dropped": f"{100 * found.usage.dropped_fraction:.2g}%"}
        row |= {("share", label): one.share for label, one in found.specialisation.items()}
        rows.append(row)
    columns = {
        "layer": "layer",
        "experts": "experts",
        "k": "k",
        "positions": "positions",
        "dead_experts": "dead",
        "effective_experts": "effective experts",
        "load_cv": "CV of load",
        "importance_cv": "CV of importance",
        "max_over_mean_load": "busiest, of mean load",
        "dropped": "dropped",
        "mean_entropy": "entropy of a position",
    }
    labels = dict.fromkeys(label for found in findings.values() for label in found.specialisation)
    columns |= {("share", label): f"share: {label}" for label in labels}
    links = "".join(
        f'<li><a href="#layer{number}">Layer {html.escape(name)}</a></li>' for number, name in enumerate(findings)
    )
    links = f'<nav aria-label="Contents"><ul>{links}<li><a href="#terms">What the words mean</a></li></ul></nav>'
    intro = paragraph("What the gates of the model decide at evaluation, over all positions of the data looked at.")
    return intro + table(rows, columns) + links
