"""A callback that watches how the experts are used while a model trains."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike, fspath
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_moe import checks
from tf_moe.analysis.labels import Label
from tf_moe.analysis.observer import Observer, check_batches, tally
from tf_moe.analysis.specialisation import Specialisation, SpecialisationTally, as_labels
from tf_moe.analysis.summaries import write_histogram, write_image, write_scalar, write_text
from tf_moe.analysis.usage import Usage, UsageTally

# Experts that are described in words.
_DESCRIBED = 20
# A picture of the load has up to so many looks, each so many pixels high, and about so many pixels across.
_LOOKS, _HEIGHT, _WIDTH = 128, 6, 512


class ExpertMonitor(keras.callbacks.Callback):
    """Looks now and then at the use of the experts of all layers, keeps it, and writes it for TensorBoard.

    A look routes the given batches at evaluation, without noise, and changes nothing of the training: no weight, no
    random state, none of the metrics that the log shows. Its cost is that of evaluating these batches: take a few. With
    another model the history begins anew.

    For each layer TensorBoard gets, under the layer's name, the numbers of `Usage.figures` and the specialisation in
    each label as scalars, histograms of the experts' load and importance over their mean, a picture of the load of each
    expert (across) at up to 128 of the looks (down), darker for more, and the labels that tell the busiest experts
    apart. It is written with TensorFlow alone; TensorBoard need not be installed where the model trains.

    Args:
        batches: What to look at, such as the first batches of the validation data: a list or a dataset of batches,
            since it is gone through again and again. Of arrays pass `[x]`.
        log_dir: Directory for TensorBoard. Default None: nothing is written, and the history only kept.
        every: "epoch", the default, or a number of training batches.
        labels: As in `measure_specialisation`. Default none.
        layers: Names of the layers to look at, which share the labels. Default all.

    Attributes:
        steps: Of each look, the number of steps that the optimizer had made; of a model without one, of batches.
        usage: For each layer's name, its `Usage` at each look, a list.
        specialisation: For each layer's name and each label, its share at each look, a list.

    Raises:
        ValueError: If `every` is neither, or `batches` is one batch or can be gone through only once; at the first
            look, as `measure_usage` and `measure_specialisation`.
        TypeError: If a label is no function.

    Example:

    >>> labels = {"place": tf_moe.analysis.labels.places()}
    >>> monitor = tf_moe.analysis.ExpertMonitor(dataset.take(1), "logs/experts", labels=labels)
    >>> history = model.fit(dataset, epochs=2, callbacks=[monitor], verbose=0)
    >>> monitor.steps, monitor.load("moe").shape  # a look after every epoch of two batches, at 8 experts
    ([2, 4], (2, 8))

    Reference: section 4 of Shazeer et al. (2017) says what goes wrong without balance, and that it does so early.
    """

    def __init__(
        self,
        batches: Iterable,
        log_dir: str | PathLike | None = None,
        every: str | int = "epoch",
        labels: Mapping[str, Label | Callable[[Any], Any]] | None = None,
        layers: str | Sequence[str] | None = None,
    ):
        super().__init__()
        check_batches(batches, again=True)
        self.batches = batches
        self.log_dir = None if log_dir is None else fspath(log_dir)
        self.every = every if every == "epoch" else checks.integer("every", every, hint=', or "epoch"')
        self.labels = as_labels(labels or {})
        self.layers = [layers] if isinstance(layers, str) else layers
        self.steps: list[int] = []
        self.usage: dict[str, list[Usage]] = {}
        self.specialisation: dict[str, dict[str, list[float]]] = {}
        self._writer = None
        self._before_epoch = self._seen = 0

    def load(self, layer: str) -> np.ndarray:
        """Float64 `(looks, E)`, the load of every expert of a layer at every look, as shares that add up to 1.

        Raises:
            ValueError: If no such layer was looked at, or none yet.
        """
        if layer not in self.usage:
            raise ValueError(f"layer must be one that was looked at, of {list(self.usage)}. Received: layer={layer!r}.")
        load = np.stack([usage.load for usage in self.usage[layer]])
        return load / np.maximum(load.sum(axis=1, keepdims=True), 1)

    def table(self) -> list[dict[str, Any]]:
        """All numbers, a row for each look and layer."""
        return [
            {"step": step, "layer": name, **self.usage[name][look].figures()}
            | {f"specialisation/{label}": shares[look] for label, shares in self.specialisation[name].items()}
            for look, step in enumerate(self.steps)
            for name in self.usage
        ]

    def set_model(self, model):
        if model is not self.model:  # nothing of a model before is that of this one
            self.steps, self.usage, self.specialisation = [], {}, {}
            self._before_epoch = self._seen = 0
        super().set_model(model)
        self._observer = None

    def on_epoch_begin(self, epoch, logs=None):
        self._before_epoch, self._seen = self._before_epoch + self._seen, 0

    def on_train_batch_end(self, batch, logs=None):
        # Several batches may have been trained on since the last call, by steps_per_execution.
        before, self._seen = self._before_epoch + self._seen, batch + 1
        if self.every != "epoch" and (self._before_epoch + self._seen) // self.every > before // self.every:
            self._look()

    def on_epoch_end(self, epoch, logs=None):
        if self.every == "epoch":
            self._look()

    def on_train_end(self, logs=None):
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _look(self):
        self._observer = self._observer or Observer(self.model)
        found = tally(self._observer, self.batches, lambda layer: _Look(layer, self.labels), self.layers)
        optimizer = getattr(self.model, "optimizer", None)
        # A tensor: of a MirroredStrategy's variable int() makes none.
        trained = self._before_epoch + self._seen if optimizer is None else tf.convert_to_tensor(optimizer.iterations)
        self.steps.append(int(trained))
        for name, look in found.items():
            shares = self.specialisation.setdefault(name, {label: [] for label in self.labels})
            specialisation = look.labels.result(0, None)
            for label, one in specialisation.items():
                shares[label].append(one.share)
            usage = look.usage.result()
            self.usage.setdefault(name, []).append(usage)
            if self.log_dir is not None:
                self._writer = self._writer or tf.summary.create_file_writer(self.log_dir)
                with self._writer.as_default():
                    self._write(name, usage, specialisation)
        if self._writer is not None:
            self._writer.flush()

    def _write(self, name: str, usage: Usage, specialisation: Mapping[str, Specialisation]):
        step = self.steps[-1]
        for figure, value in usage.figures().items():
            write_scalar(f"{name}/{figure}", value, step)
        for label, one in specialisation.items():
            write_scalar(f"{name}/specialisation/{label}", one.share, step)
        for what, values in (("load", usage.load), ("importance", usage.importance)):
            write_histogram(f"{name}/{what}_over_mean", values / max(values.mean(), 1e-30), step)
        write_image(f"{name}/load_over_time", _picture(self.load(name)), step)
        if specialisation:
            write_text(f"{name}/experts", self._describe(usage, specialisation), step)

    def _describe(self, usage: Usage, specialisation: Mapping[str, Specialisation]) -> str:
        """A table in Markdown of the busiest experts, with the labels that tell them apart."""
        rows = [["expert", "load", *specialisation], ["---"] * (2 + len(specialisation))]
        for expert in np.argsort(-usage.load, kind="stable")[:_DESCRIBED]:
            row = [str(expert), f"{100 * usage.load[expert] / max(usage.load.sum(), 1):.2g}%"]
            for label, one in specialisation.items():
                tops = one.top_labels(int(expert))
                text = ", ".join(f"{self.labels[label].name(top['label'])} ×{top['ratio']:.2g}" for top in tops)
                row.append(text.replace("|", "\\|"))
            rows.append(row)
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _picture(load: np.ndarray) -> np.ndarray:
    """Shades of loads `(looks, E)` against the even share: at 1/8 white, at 8 times black.

    Of many looks some are shown, from the first to the last.
    """
    looks, experts = load.shape
    shown = load[np.unique(np.linspace(0, looks - 1, _LOOKS).round().astype("int64"))]
    doublings = np.log2(np.clip(shown * experts, 1 / 8, 8))
    shades = np.round((3 - doublings) / 6 * 255).astype("uint8")
    return np.kron(shades, np.ones((_HEIGHT, max(1, _WIDTH // experts)), "uint8"))[:, :, None]


class _Look:
    """The tallies of a layer at one look."""

    def __init__(self, layer, labels):
        self.usage, self.labels = UsageTally(layer), SpecialisationTally(layer.name, labels)

    def add(self, decisions, batch):
        self.usage.add(decisions, batch)
        self.labels.add(decisions, batch)
