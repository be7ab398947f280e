"""The table of all runs: a CSV file that grows by one row a run, and tells which are done."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# What makes two runs the same; the other columns are their outcome.
KEYS = (
    "study",
    "network",
    "variant",
    "seed",
    "corpus",
    "width",
    "steps",
    "batch",
    "time",
    "rate",
    "optimizer",
    "dropout",
)
OUTCOMES = (
    "parameters", "ops_per_timestep", "floor", "tokens", "seconds", "test_perplexity", "importance_cv", "load_cv",
    "max_over_mean_load", "gradient_norm_mean", "gradient_norm_max", "validation_perplexity",
)  # fmt: skip


def read(file: Path) -> list[dict[str, str]]:
    """All rows; none where there is no file yet."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def is_done(key: dict[str, Any], rows: Iterable[dict[str, str]]) -> bool:
    return any(all(row[name] == str(key[name]) for name in KEYS) for row in rows)


def append(file: Path, row: dict[str, Any]) -> None:
    """Write one row at one stroke, so that an interruption leaves whole rows."""
    is_new = not file.exists()
    with file.open("a", newline="") as lines:
        writer = csv.DictWriter(lines, (*KEYS, *OUTCOMES), restval="")
        if is_new:
            writer.writeheader()
        writer.writerow(
            {name: f"{v:.6g}" if isinstance(v, float) and name in OUTCOMES else v for name, v in row.items()}
        )


def as_numbers(rows: Iterable[dict[str, str]], column: str) -> list[float]:
    """A column where it is filled in."""
    return [float(row[column]) for row in rows if row.get(column)]


def show(rows: list[dict[str, str]]) -> str:
    """The columns that tell runs apart or say how they came out, as a Markdown table."""
    names = ("network", "variant", "seed", "parameters", "ops_per_timestep", "seconds", "test_perplexity", "load_cv")
    lines = [names, ["---"] * len(names), *([row[name] for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
