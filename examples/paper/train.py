"""One run: a network trained, tested, and measured; a row of the table."""

import argparse
import dataclasses
import statistics
import sys
import time
from typing import Any

import keras
import tensorflow as tf
from corpora import Data
from runs import Run

from tf_moe.analysis import count, measure_drops, measure_usage
from tf_moe.models import Perplexity
from tf_moe.optimizers import FactoredAdam, optimizer_for

# Room for each expert, in its fair share of the batch, for a column that says what such a layout would drop.
TIGHT = 1.25


def train(run: Run, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """The row of one run."""
    keras.utils.set_random_seed(run.seed)
    network = run.shape()
    if options.dropout is not None and "dropout" not in run.fields:
        network = dataclasses.replace(network, dropout=options.dropout)
    model = network.build(data.vocabulary_size, **run.arguments(network))
    model.compile(
        make_optimizer(options, run.weight_decay, network.num_experts is not None),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[Perplexity()],
    )
    norm, clock = GradientNorm(data.validation.take(2)), StepTimes()
    # Text may be learned by heart: what is tested is what was best on the validation text.
    best = keras.callbacks.EarlyStopping("val_loss", patience=options.patience, restore_best_weights=True)
    points = min(options.points, options.steps)
    started = time.perf_counter()
    history = model.fit(
        data.train(run.seed, run.fraction),
        steps_per_epoch=total_steps(options) // points,
        epochs=points,
        validation_data=data.validation,
        callbacks=[norm, clock, best],
        shuffle=False,  # the data come shuffled
        verbose=1 if sys.stdout.isatty() else 2,
    ).history
    seconds = time.perf_counter() - started
    cost, tokens = count(model), options.batch * options.time
    row = {
        "parameters": cost.parameters,
        "ops_per_timestep": cost.multiply_adds,
        "floor": data.floor,
        "tokens": len(clock.seconds) * tokens,
        "seconds": round(seconds),
        "tokens_per_second": round(tokens / clock.median),
        "validation_perplexity": " ".join(f"{value:.4g}" for value in history["val_perplexity"]),
        "test_perplexity": model.evaluate(data.test, verbose=0, return_dict=True)["perplexity"],
        "gradient_norm_mean": statistics.mean(norm.values),
        "gradient_norm_max": max(norm.values),
    }
    if network.num_experts is not None:
        usage = measure_usage(model, data.test)["moe"]
        row |= {name: getattr(usage, name) for name in ("importance_cv", "load_cv", "max_over_mean_load")}
        row["dropped_at_1.25"] = measure_drops(model, data.test, [TIGHT])["moe"][TIGHT]
    return row


def total_steps(options) -> int:
    """Steps of training: as many as were asked for, less what does not divide evenly among the looks at validation."""
    points = min(options.points, options.steps)
    return options.steps // points * points


def make_optimizer(options, weight_decay: float, has_experts: bool) -> keras.optimizers.Optimizer:
    """Adam; for the experts appendix D's factored one, or one with weight decay, if so asked; warm-up, then a cosine.

    The norm of the gradient is clipped, of both parts each by itself.
    """

    def schedule():
        steps = total_steps(options)
        # As `warmup_cosine` in examples/common.py, which no program of this folder finds: it looks in its own.
        warmup = max(1, steps // 20)
        return keras.optimizers.schedules.CosineDecay(
            0.0, max(1, steps - warmup), alpha=0.02, warmup_target=options.rate, warmup_steps=warmup
        )

    adam = keras.optimizers.Adam(schedule(), global_clipnorm=1.0)
    if not has_experts or not (options.factored or weight_decay):
        return adam
    kind = FactoredAdam if options.factored else keras.optimizers.AdamW
    return optimizer_for(kind(schedule(), weight_decay=weight_decay or None, global_clipnorm=1.0), adam)


class StepTimes(keras.callbacks.Callback):
    """How long each step of training takes by the clock."""

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.perf_counter() - self._started)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class GradientNorm(keras.callbacks.Callback):
    """Norms of the gradient of the task's loss, of each of some batches at the end of every epoch.

    Without the balance losses, whose weights would show in it; with the gate's noise and dropout. The model stays as it
    was: in training a gate may move a bias, and metrics count.

    Args:
        batches: Batches of (tokens, next tokens, weights).
    """

    def __init__(self, batches: tf.data.Dataset):
        super().__init__()
        self.batches, self.values, self._norm = batches, [], None

    def on_epoch_end(self, epoch, logs=None):
        if self._norm is None:
            self._norm = tf.function(self._measure)
        state = [*self.model.non_trainable_variables, *self.model.metrics_variables]
        before = [variable.numpy() for variable in state]
        self.values += [float(self._norm(*batch)) for batch in self.batches]
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)

    def _measure(self, tokens, following, weights):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(following, self.model(tokens, training=True))
            loss = tf.reduce_sum(losses * weights) / tf.reduce_sum(weights)
        gradients = tape.gradient(loss, self.model.trainable_variables)
        # An embedding's gradient comes as rows, several for a word: they have to be added up first.
        return tf.linalg.global_norm([tf.convert_to_tensor(g) for g in gradients if g is not None])
