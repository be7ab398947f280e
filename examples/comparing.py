"""What `images.py` and `audio.py` share: a mixture beside its dense twin and a wide layer, trained over several seeds.

All of it knows inputs with a class each, `Data`, and networks that have one of `middles` in their middle.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from common import format_table, positive, warmup_cosine

from tf_moe.gates import NoisyTopK
from tf_moe.layers import SparseMoE, record_routings
from tf_moe.models import dense_twin


def add_common_arguments(parser, experts: int, hidden: int, epochs: int, learning_rate: float) -> None:
    """Experts and training, with defaults of each program."""
    number = {"type": positive, "metavar": "N"}
    parser.add_argument("--experts", default=experts, help="default: %(default)s", **number)
    parser.add_argument("--k", default=2, help="experts for each position (default: %(default)s)", **number)
    parser.add_argument("--hidden", default=hidden, help="of each expert (default: %(default)s)", **number)
    parser.add_argument("--epochs", default=epochs, help="default: %(default)s", **number)
    parser.add_argument("--batch", default=64, help="default: %(default)s", **number)
    parser.add_argument(
        "--learning-rate", default=learning_rate, type=float, help="highest, of Adam (default: %(default)s)"
    )
    parser.add_argument("--seeds", default=5, help="trainings of each network (default: %(default)s)", **number)
    parser.add_argument("--smoke", action="store_true", help="a tiny run, to see that all works")


class Part(NamedTuple):
    """Inputs `(N, ...)`, and the number of each one's class `(N,)`."""

    inputs: np.ndarray
    labels: np.ndarray


class Data(NamedTuple):
    """The names of the classes, and what is for training, for choices and for the last test."""

    classes: list[str]
    train: Part
    validation: Part
    test: Part


def split(inputs: np.ndarray, labels: np.ndarray, classes: list[str]) -> Data:
    """Of each class three, one and one fifth, the same in every run."""
    parts = ([], [], [])
    rng = np.random.default_rng(0)
    for number, name in enumerate(classes):
        members = rng.permutation(np.flatnonzero(labels == number))
        if len(members) < 3:
            raise ValueError(
                "Each class needs 3 examples or more, to train, to choose and to test. "
                f"Received: {len(members)} of {name!r}."
            )
        held_out = max(1, len(members) // 5)
        for part, chosen in zip(parts, np.split(members, [-2 * held_out, -held_out]), strict=True):
            part.extend(chosen)
    return Data(classes, *(Part(inputs[part], labels[part]) for part in parts))


def check_folders(directory: Path) -> list[Path]:
    """The folders of a directory, one for each class."""
    if not directory.is_dir():
        raise ValueError(f"No such directory: {str(directory)!r}.")
    folders = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        raise ValueError(
            "The directory must have a folder for each class, two or more. "
            f"Received: {str(directory)!r} with {[path.name for path in folders]}."
        )
    return folders


def middles(width: int, options: argparse.Namespace) -> dict[str, Callable[[], keras.layers.Layer]]:
    """What is compared, by name: functions that make the layer with new weights."""

    def mixture():
        # The paper starts the gate at zero; in a run this short it tells positions apart sooner from random weights.
        gate = NoisyTopK(options.experts, options.k, kernel_initializer="glorot_uniform")
        return SparseMoE(options.experts, options.hidden, k=options.k, gate=gate, name="moe")

    def as_many_weights():
        hidden = keras.layers.Dense(options.experts * options.hidden, "relu", use_bias=False)
        wide = keras.Sequential([hidden, keras.layers.Dense(width, use_bias=False)], name="wide")
        wide.supports_masking = True  # as in `dense_twin`
        return wide

    mixture()  # wrong sizes are told of before the first training
    return {"moe": mixture, "dense": lambda: dense_twin(mixture(), width), "wide": as_many_weights}


def multiply_adds(model: keras.Model) -> int:
    """Of a forward pass for one input: each kernel is used once at every position of its layer's output.

    Of a mixture only k experts are, and both matrices of its gate. Biases are left out, as in `tf_moe.analysis.count`.
    """
    total = 0
    for layer in model.layers:
        kernels = {w.path: math.prod(w.shape) for w in layer.trainable_weights if len(w.shape) > 1}
        used = sum(kernels.values())
        if isinstance(layer, SparseMoE):
            experts = sum(kernels[w.path] for w in layer.experts.trainable_weights)
            used += experts * layer.k // layer.num_experts - experts
        total += used * (math.prod(layer.output.shape[1:-1]) if layer.trainable_weights else 0)
    return total


class Answers(NamedTuple):
    """Of N inputs, which are given their class, bool `(N,)`, and how many positions of each an expert has, `(N, E)`."""

    right: np.ndarray
    load: np.ndarray | None


class Run(NamedTuple):
    """One trained network, and what it does with the validation and the test inputs."""

    model: keras.Model
    validation: Answers
    test: Answers


def train(model: keras.Model, data: Data, options: argparse.Namespace) -> Run:
    steps = options.epochs * math.ceil(len(data.train.labels) / options.batch)
    schedule = warmup_cosine(options.learning_rate, steps, steps // 10)
    model.compile(
        keras.optimizers.Adam(schedule, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(*data.train, batch_size=options.batch, epochs=options.epochs, verbose=0)
    return Run(model, answer(model, data.validation), answer(model, data.test))


def answer(model: keras.Model, part: Part) -> Answers:
    right, loads = [], []
    for start in range(0, len(part.labels), 256):
        inputs, labels = (array[start : start + 256] for array in part)
        with record_routings() as routings:
            logits = model(inputs, training=False)
        right.append(np.argmax(logits, axis=-1) == labels)
        for moe, routing in routings:
            assigned = tf.cast(routing.combine_weights > 0, tf.float32)  # (positions of all inputs, k)
            by_position = tf.einsum("tk,tke->te", assigned, tf.one_hot(routing.expert_index, moe.num_experts))
            loads.append(tf.reduce_sum(tf.reshape(by_position, (len(labels), -1, moe.num_experts)), axis=1))
    return Answers(np.concatenate(right), np.concatenate(loads) if loads else None)


def compare(networks: dict[str, Callable[[], keras.Model]], data: Data, options: argparse.Namespace) -> dict:
    """All seeds of all networks, each seed with its own weights, noise and order of the same training inputs."""
    runs = {name: [] for name in networks}
    for seed in range(options.seeds):
        for name, make in networks.items():
            keras.utils.set_random_seed(seed)
            runs[name].append(train(make(), data, options))
            print(f"seed {seed}, {name}: validation accuracy {runs[name][-1].validation.right.mean():.2%}", flush=True)
    return runs


def show_comparison(runs: dict[str, list[Run]], data: Data, unit: str) -> str:
    rows = []
    for name, trained in runs.items():
        model = trained[0].model
        row = {
            "network": name,
            "parameters": f"{model.count_params():,}",
            f"multiply-adds of {unit}": f"{multiply_adds(model):,}",
            "validation accuracy": show_spread([run.validation.right.mean() for run in trained]),
            "test accuracy": show_spread([run.test.right.mean() for run in trained]),
        }
        if name == "moe":
            loads = [run.test.load.sum(axis=0) for run in trained]
            row["max/mean load"] = f"{np.mean([load.max() / load.mean() for load in loads]):.2f}"
        rows.append(row)
    return format_table(rows)


def show_spread(accuracies: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{100 * np.mean(accuracies):.2f} ± {100 * np.std(accuracies):.2f} %"


def verdict(moe: list[Run], dense: list[Run]) -> str:
    """Whether the mixture is right more often in the test, by more than chance of seeds and of test inputs explains."""
    ahead = np.array([m.test.right * 1.0 - d.test.right for m, d in zip(moe, dense, strict=True)])  # (seeds, inputs)
    by_seed, by_input = ahead.mean(axis=1), ahead.mean(axis=0)
    if len(by_seed) == 1:
        return f"One seed does not tell whether the mixture beats its dense twin: {100 * ahead.mean():+.2f} points."
    error = max(standard_error(by_seed), standard_error(by_input))
    if abs(ahead.mean()) <= 2 * error:
        outcome = "The mixture neither beats its dense twin nor loses to it"
    else:
        outcome = "The mixture beats its dense twin" if ahead.mean() > 0 else "The mixture loses to its dense twin"
    return (
        f"{outcome}: test accuracy {100 * ahead.mean():+.2f} points, standard error {100 * error:.2f} "
        f"(the larger of those over {len(by_seed)} seeds and over {len(by_input):,} test inputs)."
    )


def standard_error(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def show_experts(load: np.ndarray, labels: np.ndarray, names: list[str], kind: str) -> str:
    """For each expert its share of all positions, and the inputs of which it has the most, against that share."""
    by_group = np.stack([load[labels == number].sum(axis=0) for number in range(len(names))])  # (groups, experts)
    of_all = load.sum(axis=0) / load.sum()
    of_group = by_group / np.maximum(by_group.sum(axis=1, keepdims=True), 1)  # a group may have no input
    rows = []
    for expert, share in enumerate(of_all):
        times = of_group[:, expert] / max(share, 1e-9)
        best = [f"{names[i]} (x {times[i]:.1f})" for i in np.argsort(-times)[:3] if times[i] >= 1.1]
        rows.append({"expert": expert, "share of positions": f"{share:.1%}", f"most for {kind}": ", ".join(best)})
    return format_table(rows)
