"""One training: goes on where it was interrupted, and ends with the weights that were best in validation."""

import argparse
import hashlib
import json
import time
from pathlib import Path

import keras
from common import warmup_cosine
from translating.data import Data

from tf_moe.distribute import Resume
from tf_moe.models import Perplexity, SmoothedCrossentropy, TranslationNetwork, Translator

# Options that may change when a training goes on.
FREE = ("models", "save_every", "beam", "output", "data", "pair_steps", "test")


def network_of(options: argparse.Namespace) -> TranslationNetwork:
    """The shape of the mixture of experts; its `dense_twin()` is that of the other model."""
    encoder_layers, decoder_layers = options.layers
    return TranslationNetwork(
        f"moe-{options.experts}",
        options.width,
        options.units,
        encoder_layers,
        decoder_layers,
        num_experts=options.experts,
        k=options.k,
        expert_hidden=options.hidden,
        gate=options.gate,
        dropout=options.dropout,
    )


def train(model: Translator, data: Data, options: argparse.Namespace, steps: int) -> float:
    """Trains the model and returns its perplexity on the validation text."""
    points = min(options.points, steps)
    schedule = warmup_cosine(options.rate, steps, steps // 10, alpha=0.02)
    model.compile(
        keras.optimizers.Adam(schedule, beta_2=0.98, global_clipnorm=1.0),
        SmoothedCrossentropy(options.smoothing, reduction="mean_with_sample_weight"),
        weighted_metrics=[Perplexity()],
    )
    checkpoints = options.output / f"{model.name}-checkpoints"
    settings = {name: value for name, value in vars(options).items() if name not in FREE} | {"steps": steps}
    settings["data"] = options.data and str(options.data.resolve())
    settings["pieces"] = hashlib.sha256(data.pieces.model).hexdigest()
    resume = Resume(checkpoints, options.save_every, delete_checkpoint=False, settings=settings)
    best = KeepBest(checkpoints)
    model.fit(
        data.train,
        steps_per_epoch=steps // points,
        epochs=points,
        validation_data=data.validation,
        callbacks=[best, Report(steps // points), resume],
        shuffle=False,  # the data come shuffled
        verbose=0,
    )
    if best.value == float("inf"):
        raise ValueError("The validation perplexity was never a finite number. Pass a lower --rate.")
    model.load_weights(best.weights)
    return best.value


class Report(keras.callbacks.Callback):
    """Says after each epoch how far the training is; the models have more metrics than fit on a line.

    Args:
        steps: Of an epoch.
    """

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def on_epoch_begin(self, epoch, logs=None):
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        seconds, step = time.perf_counter() - self._started, (epoch + 1) * self.steps
        perplexities = f"perplexity {logs['perplexity']:.3f}, in validation {logs['val_perplexity']:.3f}"
        print(f"{self.model.name}, step {step}: {perplexities}, {seconds:.0f} s", flush=True)


class KeepBest(keras.callbacks.Callback):
    """Keeps the weights of the epoch with the lowest validation perplexity, in files that outlive the process.

    Args:
        directory: Where to keep them.
    """

    def __init__(self, directory: Path):
        super().__init__()
        self.weights, self._state = directory / "best.weights.h5", directory / "best.json"

    @property
    def value(self) -> float:
        """The lowest perplexity so far."""
        return (
            json.loads(self._state.read_text(encoding="utf-8"))["perplexity"] if self._state.exists() else float("inf")
        )

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 0:  # what is there is of another training
            self._state.unlink(missing_ok=True)

    def on_epoch_end(self, epoch, logs=None):
        if logs["val_perplexity"] < self.value:
            self.weights.parent.mkdir(parents=True, exist_ok=True)
            self.model.save_weights(self.weights)
            self._state.write_text(json.dumps({"epoch": epoch, "perplexity": logs["val_perplexity"]}), encoding="utf-8")
