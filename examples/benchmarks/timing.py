"""Timing calls side by side, and tables of the times, which the benchmarks of this folder share."""

import csv
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple


class Times(NamedTuple):
    """Medians of a call, in milliseconds: by the clock, and of this process's CPU time."""

    wall: float
    cpu: float


def interleave(
    calls: dict[str, Callable[..., object]], fresh: Callable[[], tuple], repetitions: int, warm_up: int = 2
) -> dict[str, Times]:
    """Time calls that take turns, so that what else the machine does falls on all of them.

    Args:
        calls: By name; each is called with what `fresh` made, and has to wait for its own result.
        fresh: Makes new arguments, the same for all calls of a round, outside of what is timed.
        repetitions: Rounds that count.
        warm_up: Rounds before them, in which calls trace and compile.
    """
    rows = {name: [] for name in calls}
    for round_ in range(-warm_up, repetitions):
        arguments = fresh()
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call(*arguments)
            row = Times(1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu))
            if round_ >= 0:
                rows[name].append(row)
    return {name: Times(*map(statistics.median, zip(*times, strict=True))) for name, times in rows.items()}


def print_table(rows: Iterable[dict]) -> None:
    """Rows as a Markdown table, each as soon as it is there, headed by the keys of the first."""
    for n, row in enumerate(rows):
        if n == 0:
            print("| " + " | ".join(row) + " |\n|" + " --- |" * len(row))
        print(
            "| " + " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()) + " |", flush=True
        )


def write_csv(rows: list[dict], file: Path) -> None:
    """Rows as a table of comma-separated values, headed by the keys of the first."""
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, rows[0])
        writer.writeheader()
        writer.writerows(rows)
