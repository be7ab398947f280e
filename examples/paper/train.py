"""One run: a network trained, tested, and measured; a row of the table."""

import argparse
import dataclasses
import sys
import time
from typing import Any

import keras
import tensorflow as tf
from corpora import Data
from runs import Run

from tf_moe.analysis import measure_usage
from tf_moe.models import PAPER, Perplexity
from tf_moe.optimizers import FactoredAdam, optimizer_for


def train(run: Run, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """The row of one run."""
    keras.utils.set_random_seed(run.seed)
    network = PAPER[run.network].scaled(options.width)
    if options.dropout is not None:
        network = dataclasses.replace(network, dropout=options.dropout)
    model = network.build(data.vocabulary_size, **run.arguments(network))
    model.compile(
        make_optimizer(options),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[Perplexity()],
    )
    norm = GradientNorm(data.train(run.seed + 1).take(4).cache())
    points = min(options.points, options.steps)
    started = time.perf_counter()
    history = model.fit(
        data.train(run.seed),
        steps_per_epoch=options.steps // points,
        epochs=points,
        validation_data=data.validation,
        callbacks=[norm],
        shuffle=False,  # the data come shuffled
        verbose=1 if sys.stdout.isatty() else 2,
    ).history
    seconds = time.perf_counter() - started
    row = {
        "parameters": network.parameters,
        "ops_per_timestep": network.ops_per_timestep,
        "floor": data.floor,
        "tokens": options.steps // points * points * options.batch * options.time,
        "seconds": round(seconds),
        "validation_perplexity": " ".join(f"{value:.4g}" for value in history["val_perplexity"]),
        "test_perplexity": model.evaluate(data.test, verbose=0, return_dict=True)["perplexity"],
        "gradient_norm_mean": sum(norm.values) / len(norm.values),
        "gradient_norm_max": max(norm.values),
    }
    if network.num_experts is not None:
        usage = measure_usage(model, data.test)["moe"]
        row |= {name: getattr(usage, name) for name in ("importance_cv", "load_cv", "max_over_mean_load")}
    return row


def make_optimizer(options) -> keras.optimizers.Optimizer:
    """Adam, or appendix D's factored one for the experts and Adam for the rest; warm-up, then a cosine."""

    def schedule():
        warmup = max(1, options.steps // 20)
        return keras.optimizers.schedules.CosineDecay(
            0.0, max(1, options.steps - warmup), alpha=0.02, warmup_target=options.rate, warmup_steps=warmup
        )

    adam = keras.optimizers.Adam(schedule(), global_clipnorm=1.0)
    return optimizer_for(FactoredAdam(schedule(), global_clipnorm=1.0), adam) if options.factored else adam


class GradientNorm(keras.callbacks.Callback):
    """The norm of the whole gradient over the same batches, at the end of every epoch.

    Args:
        batches: Batches of (tokens, next tokens, weights).
    """

    def __init__(self, batches: tf.data.Dataset):
        super().__init__()
        self.batches, self.values, self._norm = batches, [], None

    def on_epoch_end(self, epoch, logs=None):
        if self._norm is None:
            self._norm = tf.function(self._measure)
        norms = [float(self._norm(*batch)) for batch in self.batches]
        self.values.append(sum(norms) / len(norms))

    def _measure(self, tokens, following, weights):
        with tf.GradientTape() as tape:
            loss = self.model.compute_loss(tokens, following, self.model(tokens, training=True), weights)
        gradients = tape.gradient(loss, self.model.trainable_variables)
        return tf.linalg.global_norm([g for g in gradients if g is not None])
