"""Going on with a training that was interrupted."""

import contextlib
import json
import os
import pathlib
import warnings

import keras
import tensorflow as tf
from tensorflow.experimental import dtensor

from tf_moe.distribute.checkpoint import restore_sharded, save_sharded
from tf_moe.distribute.connection import barrier
from tf_moe.distribute.strategy import ExpertParallelStrategy

_STATE = "state.json"


class Resume(keras.callbacks.Callback):
    """Saves a sharded checkpoint now and then, and goes on from it when the same script is started again.

    Unlike `keras.callbacks.BackupAndRestore` it never gathers the experts, it keeps the states of random number
    generators and metrics, and after a checkpoint in the middle of an epoch it goes on in the middle: the batches that
    were seen are skipped. So the losses are those of an uninterrupted run, if the data come in the same order; a
    dataset that is shuffled anew in every epoch has to have that order follow from the epoch.

    Give it to `fit` of a model made in the scope of an `ExpertParallelStrategy`, the same in every process.

    Args:
        directory: Where the checkpoints are, on storage that all processes share.
        save_freq: "epoch", the default, or a number of batches.
        delete_checkpoint: Whether a finished training leaves nothing behind. Default True.

    Raises:
        ValueError: If `save_freq` is neither, the checkpoint found is of another model or damaged, or the model is not
            of the scope of an `ExpertParallelStrategy`.
        FileNotFoundError: If the checkpoint that was the last is gone.

    Example:

    >>> model.fit(dataset, epochs=10, callbacks=[tf_moe.distribute.Resume("checkpoints", save_freq=1000)])
    """

    def __init__(self, directory: str | os.PathLike, save_freq: str | int = "epoch", delete_checkpoint: bool = True):
        super().__init__()
        if save_freq != "epoch" and (isinstance(save_freq, bool) or not isinstance(save_freq, int) or save_freq < 1):
            raise ValueError(
                f'save_freq must be "epoch" or a positive number of batches. Received: save_freq={save_freq!r}.'
            )
        self.directory = pathlib.Path(directory)
        self.save_freq = save_freq
        self.delete_checkpoint = delete_checkpoint
        self._epoch, self._skipped, self._found = 0, 0, None
        self._quiet = contextlib.ExitStack()

    def on_train_begin(self, logs=None):
        strategy = self.model.distribute_strategy
        if not isinstance(strategy, ExpertParallelStrategy):  # no other can skip the batches that were seen
            raise ValueError(
                "Resume needs a model made in the scope of an ExpertParallelStrategy. Received: "
                f"{self.model.name!r}, of {type(strategy).__name__}. Use keras.callbacks.BackupAndRestore for others."
            )
        state = self.directory / _STATE
        self._found = _read_state(state) if state.exists() else None
        barrier()  # every process has read it before any writes the next
        if self._found is not None:
            self.model._initial_epoch = self._found["epoch"]  # as keras.callbacks.BackupAndRestore does

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        if self._found is None:
            return
        # Not earlier: Keras resets the metrics when an epoch begins.
        restore_sharded(self.directory / self._found["checkpoint"], self.model, self._metrics(self._found["batch"]))
        self.model.distribute_strategy.extended.skip_batches = self._found["batch"]
        self._skipped, self._found = self._found["batch"], None
        # The rest of an epoch is shorter than Keras expects: no reason to warn.
        self._quiet.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Your input ran out of data")

    def on_train_batch_end(self, batch, logs=None):
        seen = batch + 1 + self._skipped
        if self.save_freq != "epoch" and seen % self.save_freq == 0:
            self._save(self._epoch, seen)

    def on_epoch_end(self, epoch, logs=None):
        self._skipped = 0
        self._quiet.close()
        if self.save_freq == "epoch":
            self._save(epoch + 1, 0)

    def on_train_end(self, logs=None):
        if self.delete_checkpoint:
            barrier()
            if dtensor.client_id() == 0 and self.directory.exists():
                tf.io.gfile.rmtree(str(self.directory))

    def _metrics(self, batch):
        """The variables of the metrics, which count in the middle of an epoch."""
        return self.model.metrics_variables if batch else []

    def _save(self, epoch, batch):
        """A new checkpoint; then, at one stroke, the word that it is the one; then the old one goes."""
        name = f"epoch-{epoch}-batch-{batch}"
        save_sharded(self.directory / name, self.model, self._metrics(batch))
        if dtensor.client_id() != 0:
            return
        state, new = self.directory / _STATE, self.directory / f"{_STATE}.new"
        new.write_text(json.dumps({"checkpoint": name, "epoch": epoch, "batch": batch}))
        new.replace(state)
        for file in self.directory.glob("epoch-*"):
            if file.is_file() and not file.name.startswith(f"{name}."):
                file.unlink()


def _read_state(file: pathlib.Path) -> dict:
    """Which checkpoint is the last, and of when."""
    text = file.read_text(errors="replace")
    try:
        state = json.loads(text)
        return {name: state[name] for name in ("checkpoint", "epoch", "batch")}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(file)!r} is damaged, or not of Resume. Received: {text[:80]!r}. Delete the directory to begin anew."
        ) from error
