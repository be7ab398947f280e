"""Latency and memory of the layer by the number of experts: forward pass, training step, and one token at a time.

    python examples/benchmarks
    python examples/benchmarks --quick --baseline runs/benchmark/table.csv

Writes `table.csv` and `latency.png` to `--output`; with a baseline, says what moved against it by more than a tenth.
Times are medians by the clock. The other files of this folder measure one thing each; see their first lines.
"""

import csv
from pathlib import Path

import keras
import matplotlib.figure
import tensorflow as tf
from arguments import make_parser, parse
from steps import floor, layer_step
from timing import interleave, print_table, write_csv

from tf_moe.analysis import training_memory
from tf_moe.layers import SparseMoE

# What is plotted: column, label, marker, line. Marker and line tell them apart without colour.
CURVES = [
    ("training step (ms)", "training step", "o", "-"),
    ("forward (ms)", "forward pass, no gradients", "s", "--"),
    ("floor (ms)", "two dense products, training", "x", ":"),
    ("one token (ms)", "one token", "^", "-."),
]


def measure(experts: int, options) -> dict:
    """The row of one number of experts."""
    layer = SparseMoE(experts, options.hidden, k=options.k)
    model = keras.Sequential([keras.Input((options.width,)), layer])
    one = tf.random.normal([1, options.width])
    forward = tf.function(lambda x: layer(x), reduce_retracing=True)

    calls = {
        "floor (ms)": floor(options.k * options.tokens, options.width, options.hidden),
        "training step (ms)": layer_step(layer),
        "forward (ms)": forward,
        "one token (ms)": lambda _: forward(one),
    }
    times = interleave(calls, lambda: (tf.random.normal([options.tokens, options.width]),), options.repetitions)
    memory = training_memory(model, options.tokens)
    memory = {"weights (MB)": memory.weights / 1e6, "with gradients and activations (MB)": memory.total / 1e6}
    return {"experts": experts, **{name: time.wall for name, time in times.items()}, **memory}


def plot(rows: list[dict], path: Path, title: str) -> None:
    figure = matplotlib.figure.Figure(figsize=(11, 4.5), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    experts = [row["experts"] for row in rows]
    for column, label, marker, line in CURVES:
        left.plot(experts, [row[column] for row in rows], marker=marker, linestyle=line, label=label)
    for column, marker, line in (("weights (MB)", "s", "--"), ("with gradients and activations (MB)", "o", "-")):
        label = column.removesuffix(" (MB)")
        right.plot(experts, [row[column] for row in rows], marker=marker, linestyle=line, label=label)
    for axes, label in ((left, "milliseconds, median"), (right, "memory of the layer, MB, predicted")):
        axes.set(xscale="log", yscale="log", xlabel="number of experts", ylabel=label)
        axes.set_xticks(experts, labels=map(str, experts))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path)


def read_table(file: Path) -> dict[int, dict[str, str]]:
    """The rows of an earlier run, by their number of experts."""
    with file.open(newline="", encoding="utf-8") as lines:
        return {int(row["experts"]): row for row in csv.DictReader(lines)}


def say_what_moved(rows: list[dict], before: dict[int, dict[str, str]], baseline: Path) -> None:
    moved = [
        f"{row['experts']} experts, {name}: {float(before[row['experts']][name]):.1f} -> {value:.1f}"
        for row in rows
        for name, value in row.items()
        if row["experts"] in before and name in before[row["experts"]] and name != "experts"
        if not 0.9 < value / float(before[row["experts"]][name]) < 1.1
    ]
    print(f"\nagainst {baseline}:", *(moved or ["nothing moved by more than a tenth"]), sep="\n  ")


def main(arguments=None) -> None:
    sizes = {"tokens": 4096, "k": 4, "width": 512, "hidden": 1024}
    parser = make_parser(__doc__, experts=[4, 16, 64, 256, 1024], **sizes, repetitions=10)
    parser.add_argument(
        "--output", type=Path, help="directory, default: runs/benchmark, with --smoke runs/benchmark_smoke"
    )
    parser.add_argument("--baseline", type=Path, help="the table.csv of an earlier run")
    parser.add_argument(
        "--quick", action="store_true", help="under two minutes: by default up to 256 experts, three times"
    )
    options = parse(parser, arguments, experts=[4, 8], tokens=16, width=8, hidden=16, repetitions=1)
    if options.quick and not options.smoke:
        parser.set_defaults(experts=[4, 16, 64, 256], repetitions=3)
        options = parser.parse_args(arguments)
    try:
        before = read_table(options.baseline) if options.baseline else {}  # now: this run may write the same file
    except (OSError, KeyError, ValueError) as error:
        parser.error(
            f"--baseline must be the table.csv of an earlier run. Received: {str(options.baseline)!r} ({error!r})."
        )
    options.output = options.output or Path("runs/benchmark_smoke" if options.smoke else "runs/benchmark")
    options.output.mkdir(parents=True, exist_ok=True)
    rows = [measure(experts, options) for experts in options.experts]
    print_table(rows)
    write_csv(rows, options.output / "table.csv")
    title = f"SparseMoE, {options.tokens} tokens, k = {options.k}, experts {options.width} x {options.hidden}"
    plot(rows, options.output / "latency.png", title)
    if options.baseline:
        say_what_moved(rows, before, options.baseline)


if __name__ == "__main__":
    main()
