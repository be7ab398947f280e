"""The parts of a report on one layer, as HTML: what was found, in figures, tables and words."""

import html

import numpy as np

from tf_moe.analysis.charts import heat_map, interval_chart, load_chart
from tf_moe.analysis.co_activation import CoActivation
from tf_moe.analysis.findings import Findings
from tf_moe.analysis.labels import Label
from tf_moe.analysis.markup import figure, paragraph, show, table
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


def of_usage(name: str, found: Findings) -> list[str]:
    """Load and importance of the experts, what is dead and what was dropped."""
    usage, dead = found.usage, found.usage.dead()
    experts = len(usage.load)
    text = [f"{usage.positions:,} positions went to {levels(found.k)} of {levels(found.num_experts)} experts each."]
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


def of_history(name: str, history: ExpertMonitor) -> str:
    """The load of every expert at the looks of a training."""
    load = history.load(name)
    looks = np.unique(np.linspace(0, len(load) - 1, min(len(load), _CELLS)).astype("int64"))
    steps = [history.steps[n] for n in looks]
    title = f"Load of the experts of {name} over time"
    ratios = load[looks] * load.shape[1]
    chart = heat_map(ratios, title, "step", "expert", "times the mean load", [f"{step:,}" for step in steps])
    return figure(chart, f"Load of every expert in training, from step {steps[0]:,} to step {steps[-1]:,}.")


def of_specialisation(name: str, found: Findings) -> list[str]:
    """What an expert tells of the labels; of each with few values, which experts have them."""
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
            title = f"{label} by expert of {name}"
            parts.append(_label_map(title, label, one, found.labels[label], experts))
    return parts


def _label_map(title: str, name: str, one: Specialisation, label: Label, experts: int) -> str:
    positions = one.counts.positions.sum(axis=1)
    share = one.share_of_labels(experts)
    ratio = np.where(share.any(axis=1, keepdims=True), share * positions.sum() / positions, np.nan)
    names = [label.name(value) for value in one.values]
    key = "times as often as overall"
    chart = heat_map(ratio, title, "expert", name, key, column_names=names, all_columns=True)
    caption = f"How often each {name} is among an expert's positions, against overall. A dead expert is hatched."
    return figure(chart, caption)


def of_co_activation(name: str, pairs: CoActivation) -> list[str]:
    """Which experts are chosen together, against chance."""
    experts = len(pairs.counts)
    size = -(-experts // _CELLS)  # experts on each side of a cell
    starts = np.arange(0, experts, size)
    others = ~np.eye(experts, dtype=bool)
    counts, expected = (
        np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
        for matrix in (pairs.counts * others, np.nan_to_num(pairs.expected))
    )
    ratio = counts / np.where(expected > 0, expected, np.nan)
    key = "times as often as by chance"
    chart = heat_map(ratio, f"Experts of {name} chosen together", "expert", "expert", key, starts, starts)
    columns = {
        "pair": "pair of experts",
        "together": "together",
        "by_chance": "by chance",
        "ratio": "ratio",
    }
    rows = [{"pair": f"{row['expert']}, {row['other']}", **row} for row in pairs.pairs(10)]
    caption = "How often two experts are chosen for one position, against chance."
    caption += " Hatched: an expert with itself, and where none is expected."
    caption += f" A cell is {size} by {size} experts." if size > 1 else ""
    parts = ["<h3>Chosen together</h3>", figure(chart, caption)]
    return [*parts, table(rows, columns, "The pairs that are together most above chance.")] if rows else parts


def of_stability(found: Stability) -> list[str]:
    """How alike another model routes."""
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


def of_experts(found: Findings, words_of, separator: str, context: int, experts: int) -> list[str]:
    """The busiest experts: labels that tell each apart, and the inputs it is for."""
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


def levels(number: int | tuple[int, int]) -> str:
    """`32`, or `4 x 8`."""
    return " × ".join(map(str, number)) if isinstance(number, (tuple, list)) else str(number)


def _some(experts: np.ndarray) -> str:
    return ", ".join(map(str, experts[:20])) + (" and others" if len(experts) > 20 else "")
