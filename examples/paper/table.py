"""The table of all runs, a CSV file: a row for each that is done, so that none is run twice."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# What makes two runs the same; the other columns are their outcome.
KEYS = (
    "study", "network", "variant", "seed", "corpus", "fraction", "width", "steps", "batch", "time", "rate", "optimizer",
    "dropout", "points", "patience", "held_out",
)  # fmt: skip
OUTCOMES = (
    "parameters", "ops_per_timestep", "floor", "tokens", "seconds", "tokens_per_second", "test_perplexity",
    "importance_cv", "load_cv", "max_over_mean_load", "dropped_at_1.25", "gradient_norm_mean", "gradient_norm_max",
    "validation_perplexity",
)  # fmt: skip
# A digest of the text, which tells corpora of one name apart; older rows have none, and hold for every text.
TEXT = "text"
COLUMNS = (*KEYS, TEXT, *OUTCOMES)
SHOWN = (
    "network", "variant", "width", "fraction", "seed", "parameters", "ops_per_timestep", "tokens_per_second",
    "test_perplexity", "importance_cv", "load_cv", "max_over_mean_load", "dropped_at_1.25", "gradient_norm_max",
)  # fmt: skip


def read(file: Path) -> list[dict[str, str]]:
    """All rows; none where there is no file yet.

    Raises:
        ValueError: If the file has other columns.
    """
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{str(file)!r} has other columns than this program writes. Pass another --output.")
        return list(reader)


def is_done(key: dict[str, Any], rows: Iterable[dict[str, str]]) -> bool:
    """Whether the outcome of a run is among the rows."""
    return any(
        all(row[name] == _as_text(key[name]) for name in KEYS) and row[TEXT] in ("", _as_text(key[TEXT]))
        for row in rows
    )


def append(file: Path, row: dict[str, Any]) -> None:
    """Add one row; what is missing stays empty."""
    is_new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerow({name: _as_text(row.get(name)) for name in COLUMNS})


def as_numbers(rows: Iterable[dict[str, str]], column: str) -> list[float]:
    """A column where it is filled in."""
    return [float(row[column]) for row in rows if row.get(column)]


def show(rows: list[dict[str, str]]) -> str:
    """The columns that tell runs apart or say how they came out, as a Markdown table."""
    lines = [SHOWN, ["---"] * len(SHOWN), *([row[name] for name in SHOWN] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
