"""What more experts cost, part by part, and what a cost model says of yet more: the overhead of capacity.

    python examples/benchmarks/overhead.py

A training step of each part by the clock: the gate with its losses, which chooses experts; moving rows to experts and
back, for experts that are given; the experts' products; the optimizer's update (`FactoredAdam`); and the layer with all
of them but the optimizer. The arithmetic of the experts is the same whatever their number; what grows is the gate's
logits and the traffic of weights, both in proportion to it. So the model of a part is `a + b * experts`, fitted to all
sizes but the largest, whose time it has to predict.
"""

from pathlib import Path

import keras
import matplotlib.figure
import numpy as np
import tensorflow as tf
from arguments import make_parser, parse
from steps import floor, gate_step, layer_step
from timing import interleave, print_table, write_csv

from tf_moe.analysis import training_memory
from tf_moe.dispatch import dispatch_sorted
from tf_moe.gates import NoisyTopK
from tf_moe.layers import SparseMoE
from tf_moe.optimizers import FactoredAdam

STYLES = {
    "whole layer": ("o", "-"),
    "gate": ("s", "--"),
    "dispatch and combine": ("^", ":"),
    "experts": ("D", "-."),
    "optimizer": ("v", "--"),
    "floor": ("x", ":"),
}
PREDICTED = (4096, 16384, 65536)


def measure(experts: int, options) -> dict[str, float]:
    """Milliseconds of each part, and megabytes, with this number of experts."""
    layer = SparseMoE(experts, options.hidden, k=options.k)
    model = keras.Sequential([keras.Input((options.width,)), layer])
    model.compile(FactoredAdam(1e-3))
    model.optimizer.build(model.trainable_variables)

    def arrange(index):
        values = tf.fill(tf.shape(index), 1 / options.k)
        return dispatch_sorted(index, values, experts, layer.experts.takes_block(training=True)), values

    @tf.function
    def move(x, index):
        plan, values = arrange(index)
        with tf.GradientTape() as tape:
            tape.watch([x, values])
            loss = tf.reduce_sum(plan.combine(plan.dispatch(x), values) ** 2)
        return tape.gradient(loss, [x, values])

    @tf.function
    def compute(x, index):
        plan, _ = arrange(index)
        rows = plan.dispatch(x)
        with tf.GradientTape() as tape:
            tape.watch(rows)
            loss = tf.reduce_sum(layer.experts(rows, plan.counts, places=plan.places, training=True) ** 2)
        return tape.gradient(loss, [rows, *(w.value for w in layer.experts.trainable_variables)])

    dispatch = tf.function(lambda x, index: arrange(index)[0].dispatch(x))  # with which `compute` begins
    whole, gate = layer_step(layer), gate_step(NoisyTopK(experts, options.k), options.width)
    gradients = [tf.random.normal(w.shape) for w in model.trainable_variables]
    update = tf.function(lambda: model.optimizer.apply(gradients, model.trainable_variables), autograph=False)
    calls = {
        "floor": floor(options.k * options.tokens, options.width, options.hidden),
        "whole layer": lambda x, _: whole(x),
        "gate": lambda x, _: gate(x),
        "dispatch and combine": move,
        "experts": compute,
        "optimizer": lambda *_: update(),
        "dispatch": dispatch,
    }

    def fresh():
        """Tokens, and experts for them, which are drawn here: choosing is the gate's work, and timed there."""
        index = tf.math.top_k(tf.random.uniform([options.tokens, experts]), options.k).indices
        return tf.random.normal([options.tokens, options.width]), index

    times = interleave(calls, fresh, options.repetitions)
    row = {name: time.wall for name, time in times.items()}
    row["experts"] -= row.pop("dispatch")
    memory = training_memory(model, options.tokens)
    return {"number": experts, **row, "memory (MB)": memory.total / 1e6}


def fit(numbers: list[int], values: list[float]) -> tuple[float, float]:
    """The a and b of `a + b * number` with the least relative error, neither of them negative."""
    numbers, values = np.array(numbers, float), np.array(values)
    slope, start = np.polyfit(numbers, values, 1, w=1 / values)
    if slope < 0:
        return float(np.mean(values)), 0.0
    return (float(start), float(slope)) if start >= 0 else (0.0, float(np.mean(values / numbers)))


def model_of(rows: list[dict[str, float]]) -> list[dict]:
    """A row for each part: its cost model from all sizes but the largest, and how well that predicts the largest."""
    *known, largest = rows
    for part in (*STYLES, "memory (MB)"):
        start, slope = fit([row["number"] for row in known], [row[part] for row in known])
        if part == "floor":
            slope = 0.0
        predicted = start + slope * largest["number"]
        yield {
            "part": part,
            "a": start,
            "b, for 1000 experts": 1000 * slope,
            f"predicted for {largest['number']}": predicted,
            "measured": largest[part],
            **{f"predicted for {n}": start + slope * n for n in PREDICTED if n > largest["number"]},
            "doubles at": round(start / slope) if slope > 0 else "",
        }


def plot(rows: list[dict[str, float]], file: Path, title: str) -> None:
    """Milliseconds by the number of experts; points are measured, lines without points the model."""
    figure = matplotlib.figure.Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    numbers = np.array([row["number"] for row in rows])
    beyond = np.geomspace(numbers[0], 4 * numbers[-1], 60)
    for n, (part, (marker, line)) in enumerate(STYLES.items()):
        color = matplotlib.colormaps["viridis"](n / len(STYLES))
        axes.plot(numbers, [row[part] for row in rows], linestyle="", marker=marker, color=color, label=part)
        start, slope = fit(list(numbers[:-1]), [row[part] for row in rows[:-1]])
        axes.plot(beyond, start + (0 if part == "floor" else slope) * beyond, line, color=color, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="number of experts", ylabel="milliseconds a step, median", title=title)
    axes.set_xticks([*numbers, 4 * numbers[-1]], map(str, [*numbers, 4 * numbers[-1]]))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file)


def main(arguments=None) -> None:
    sizes = {"tokens": 4096, "k": 4, "width": 512, "hidden": 1024}
    parser = make_parser(__doc__, experts=[4, 16, 64, 256, 1024], **sizes, repetitions=7)
    parser.add_argument(
        "--output", type=Path, help="directory, default: runs/overhead, with --smoke runs/overhead_smoke"
    )
    options = parse(parser, arguments, experts=[4, 8, 16], tokens=16, width=8, hidden=16, repetitions=1)
    options.experts = sorted(set(options.experts))  # the model predicts the largest
    if len(options.experts) < 3:
        parser.error(f"--experts must be three numbers or more: a line through all but one. Not {options.experts}")
    options.output = options.output or Path("runs/overhead_smoke" if options.smoke else "runs/overhead")
    options.output.mkdir(parents=True, exist_ok=True)
    rows = [measure(experts, options) for experts in options.experts]
    print_table(rows)
    write_csv(rows, options.output / "overhead.csv")
    print()
    print_table(model_of(rows))
    title = f"SparseMoE, {options.tokens} tokens, k = {options.k}, experts {options.width} x {options.hidden}"
    plot(rows, options.output / "overhead.png", title)


if __name__ == "__main__":
    main()
