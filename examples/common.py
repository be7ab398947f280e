"""What several of the examples beside this file share: kinds of arguments, and small parts of training and reports."""

import argparse
import math
import time

import keras
import tensorflow as tf

from tf_moe.distribute import ExpertParallelStrategy, find_cluster
from tf_moe.text import Text, Vocabulary, build_vocabulary


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def over_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number over 0, not {value}")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to under 1, not {value}")
    return value


def make_vocabulary(text: Text, size: int, tokenizer: str = "words") -> Vocabulary:
    """The most frequent words; raises ValueError, in terms of `--vocabulary`, where there are not as many."""
    every = build_vocabulary(text, None, tokenizer)
    if not 4 <= size <= len(every):
        raise ValueError(
            f"--vocabulary must be from 4 to {len(every)}: three specials, and some of the {len(every) - 3} words that "
            f"the text has. Received: --vocabulary {size}."
        )
    return Vocabulary(every.tokens[:size], tokenizer, every.num_tokens)


def make_strategy(options) -> ExpertParallelStrategy:
    """Over the devices of the cluster that this process belongs to; without one, over its GPUs or parts of its CPU."""
    devices = None
    if find_cluster() is None:
        kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        if kind == "CPU":
            cpu, part = tf.config.list_physical_devices("CPU")[0], tf.config.LogicalDeviceConfiguration()
            tf.config.set_logical_device_configuration(cpu, [part] * options.devices)
        devices = [f"{kind}:{n}" for n in range(options.devices)]
    return ExpertParallelStrategy(devices)


class Stopwatch(keras.callbacks.Callback):
    """Seconds spent in training steps; the first one, which traces the model, is left out."""

    def __init__(self):
        super().__init__()
        self.seconds, self.steps = 0.0, -1

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds += time.perf_counter() - self.start if self.steps >= 0 else 0.0
        self.steps += 1

    @property
    def steps_per_second(self) -> float:
        """0 where there was no second step to measure."""
        return self.steps / self.seconds if self.seconds else 0.0


def warmup_cosine(rate: float, steps: int, warmup: int, alpha: float = 0.0) -> keras.optimizers.schedules.CosineDecay:
    """Up to the rate in `warmup` of the steps, and down in the rest, as a cosine, to `alpha` of it."""
    warmup = max(1, warmup)
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warmup), alpha=alpha, warmup_target=rate, warmup_steps=warmup
    )


def format_table(rows: list[dict]) -> str:
    columns = list(rows[0])

    def show(value):
        if isinstance(value, float):
            return f"{value:.2f}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    lines = [columns, ["---"] * len(columns), *([show(row.get(c, "")) for c in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
