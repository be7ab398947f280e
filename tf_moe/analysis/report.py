"""What was found of a model's experts, as one page to read: figures, tables, text, examples."""

import html
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from tf_moe import checks
from tf_moe.analysis.charts import eighths, heat_map, interval_chart, load_chart
from tf_moe.analysis.co_activation import CoActivation
from tf_moe.analysis.findings import Findings
from tf_moe.analysis.labels import Label
from tf_moe.analysis.markup import document, figure, paragraph, show, table
from tf_moe.analysis.monitor import ExpertMonitor
from tf_moe.analysis.page import contexts
from tf_moe.analysis.specialisation import Specialisation
from tf_moe.analysis.stability import Stability

# A picture has no more cells on a side than a reader could tell apart.
_CELLS = 512
# Labels with no more values than this have a picture.
_NAMED = 40
# Of an expert's labels, those are named that it has so many times more often than chance.
_NOTABLE = 1.2

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
        parts += _usage(name, found)
        if history is not None and name in history.usage:
            parts.append(_history(name, history))
        if found.specialisation:
            parts += _specialisation(name, found)
        if found.co_activation is not None:
            parts += _co_activation(name, found.co_activation)
        if stability and name in stability:
            parts += _stability(stability[name])
        if experts and (found.tops is not None or found.specialisation):
            parts += _one_by_one(found, words_of, separator, context, experts)
        parts.append("</section>")
    terms = "\n".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in _TERMS.items())
    parts.append(f'<section id="terms">\n<h2>What the words mean</h2>\n<dl>\n{terms}\n</dl></section>')
    Path(file).write_text(document(title, parts), encoding="utf-8")


def _summary(findings: Mapping[str, Findings]) -> str:
    rows = []
    for name, found in findings.items():
        row = {"layer": name, "experts": _levels(found.num_experts), "k": _levels(found.k)}
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


def _usage(name: str, found: Findings) -> list[str]:
    usage, dead = found.usage, found.usage.dead()
    experts = len(usage.load)
    text = [f"{usage.positions:,} positions went to {_levels(found.k)} of {_levels(found.num_experts)} experts each."]
    text.append("No expert is dead." if not len(dead) else f"{len(dead)} of {experts} experts are dead: {_some(dead)}.")
    text.append(
        f"The busiest has {usage.max_over_mean_load:.2f} times the mean load; the experts are used as evenly as "
        f"{usage.effective_experts:.1f} used alike would be."
    )
    if found.capacity_factor is None:
        text.append("The layer drops nothing.")
    else:
        text.append(
            f"With a capacity factor of {found.capacity_factor:g}, {usage.dropped:,} choices found no room, "
            f"{100 * usage.dropped_fraction:.2g}% of all."
        )
    chart = load_chart(usage.load, usage.importance, f"Load and importance of the experts of {name}")
    caption = "Share of all choices that each expert has (bars), and of all gate values (dots)."
    return ["<h3>Use</h3>", paragraph(" ".join(text)), figure(chart, caption)]


def _history(name: str, history: ExpertMonitor) -> str:
    load = history.load(name)
    looks = np.unique(np.linspace(0, len(load) - 1, min(len(load), _CELLS)).astype("int64"))
    steps = [history.steps[n] for n in looks]
    chart = heat_map(
        eighths(load[looks] * load.shape[1]),
        f"Load of the experts of {name} over time",
        "step",
        "expert",
        ("1/8 of mean", "8 times mean"),
        [_rounded(step) for step in steps],
    )
    return figure(chart, f"Load of every expert in training, from step {steps[0]:,} to step {steps[-1]:,}.")


def _specialisation(name: str, found: Findings) -> list[str]:
    rows = []
    for label, one in found.specialisation.items():
        low, high = one.interval
        row = {"label": label, "values": len(one.values), **one.figures()}
        rows.append(row | {"interval": f"{show(low)} to {show(high)}" if low == low else ""})
    columns = {
        "label": "label",
        "values": "values",
        "share": "share",
        "excess": "above chance",
        "interval": "95% interval",
        "information": "information",
        "baseline": "by chance",
        "limit": "most possible",
        "label_entropy": "entropy of label",
    }
    parts = ["<h3>What the experts are specialised in</h3>"]
    parts.append(table(rows, columns, "What an expert tells of a label of its positions, in nats; share without unit."))
    bars = [(row["label"], row["excess"], row["low"], row["high"]) for row in rows]
    caption = "Information above chance, in nats, with its 95% interval."
    parts.append(figure(interval_chart(bars, f"What experts of {name} tell of labels"), caption))
    experts = len(found.usage.load)
    for label, one in found.specialisation.items():
        if 2 <= len(one.values) <= _NAMED and experts <= _CELLS:
            parts.append(_label_map(label, one, found.labels[label], experts))
    return parts


def _label_map(name: str, one: Specialisation, label: Label, experts: int) -> str:
    positions = one.counts.positions.sum(axis=1)
    share = one.share_of_labels(experts)
    ratio = np.where(share.any(axis=1, keepdims=True), share * positions.sum() / positions, np.nan)
    names = [label.name(value) for value in one.values]
    ends = "8 times rarer", "8 times more often"
    chart = heat_map(
        eighths(ratio), f"Labels by expert: {name}", "expert", name, ends, column_names=names, all_columns=True
    )
    caption = (
        f"How much more often than overall each {name} is among an expert's positions; the middle shade is as often. "
        "A dead expert is grey."
    )
    return figure(chart, caption)


def _co_activation(name: str, pairs: CoActivation) -> list[str]:
    experts = len(pairs.counts)
    size = -(-experts // _CELLS)  # experts on each side of a cell
    starts = np.arange(0, experts, size)
    others = ~np.eye(experts, dtype=bool)
    counts, expected = (
        np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
        for matrix in (pairs.counts * others, np.nan_to_num(pairs.expected))
    )
    ratio = counts / np.where(expected > 0, expected, np.nan)
    ends = "8 times rarer", "8 times more often"
    chart = heat_map(eighths(ratio), f"Experts of {name} chosen together", "expert", "expert", ends, starts, starts)
    columns = {
        "pair": "pair of experts",
        "together": "together",
        "by_chance": "by chance",
        "ratio": "ratio",
    }
    rows = [{"pair": f"{row['expert']}, {row['other']}", **row} for row in pairs.pairs(10)]
    caption = "How often two experts are chosen for one position, against chance, which is the middle shade."
    caption += f" A cell is {size} by {size} experts." if size > 1 else ""
    parts = ["<h3>Chosen together</h3>", figure(chart, caption)]
    return [*parts, table(rows, columns, "The pairs that are together most above chance.")] if rows else parts


def _stability(found: Stability) -> list[str]:
    columns = {"what": "", "value": "share"}
    rows = [
        {"what": "positions with the same experts", "value": found.same_set},
        {"what": "choices that are the same", "value": found.overlap},
        {"what": "choices that are the same when experts are matched one to one", "value": found.matched_overlap},
        {"what": "the same for gates that know nothing of each other, at most", "value": found.chance_overlap},
        {"what": "information on the other's first choice, of the most possible", "value": found.information.share},
    ]
    text = paragraph(f"Compared with another model on {found.positions:,} positions.")
    return ["<h3>Against another model</h3>", text, table(rows, columns)]


def _one_by_one(found: Findings, words_of, separator: str, context: int, experts: int) -> list[str]:
    load = found.usage.load
    busiest = [int(n) for n in np.argsort(-load, kind="stable") if load[n]][:experts]
    text = "From the busiest on"
    if len(busiest) < np.count_nonzero(load):
        text += f", the first {len(busiest)} of {np.count_nonzero(load)}"
    text += ": the labels that each has most above chance, by what they add to the information"
    text += "; then the inputs with its highest gate values, in context." if found.tops is not None else "."
    parts = ["<h3>Experts one by one</h3>", paragraph(text)]
    for expert in busiest:
        parts.append(f"<h4>Expert {expert}: {100 * load[expert] / load.sum():.2g}% of the load</h4>")
        lines = []
        for label, one in found.specialisation.items():
            name_of = found.labels[label].name
            tops = [
                f"{name_of(top['label'])} ×{top['ratio']:.2g}"
                for top in one.top_labels(expert)
                if top["ratio"] >= _NOTABLE
            ]
            if tops and not one.interval[0] <= 0:
                lines.append(f"<li>{html.escape(label)}: {html.escape(', '.join(tops))}</li>")
        parts.append(f"<ul>{''.join(lines)}</ul>" if lines else "")
        if found.tops is not None and found.tops[expert]:
            parts.append(contexts(found.tops[expert], words_of, separator, context))
    return parts


def _rounded(number: int) -> str:
    """A whole number in little room: 950, 9.5k, 1.2M."""
    for size, unit in ((10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return str(number)


def _levels(number: int | tuple[int, int]) -> str:
    """`32`, or `4 x 8`."""
    return " × ".join(map(str, number)) if isinstance(number, (tuple, list)) else str(number)


def _some(experts: np.ndarray) -> str:
    return ", ".join(map(str, experts[:20])) + (", ..." if len(experts) > 20 else "")
