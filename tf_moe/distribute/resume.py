"""Going on with a training that was interrupted."""

import contextlib
import json
import math
import os
import signal
import threading
import warnings
from typing import Any

import keras
import tensorflow as tf
from tensorflow.experimental import dtensor

from tf_moe import checks
from tf_moe.distribute.checkpoint_folder import CheckpointFolder
from tf_moe.distribute.connection import barrier
from tf_moe.distribute.replay import FitData, Replay, data_of_fit, finish, frame_of_fit
from tf_moe.distribute.seed import global_seed
from tf_moe.distribute.strategy import ExpertParallelStrategy


class Resume(keras.callbacks.Callback):
    """Saves a checkpoint now and then, and goes on from it when the same script is started again.

    Weights and losses are then those of a run that nobody interrupted, on one device to the last bit where its
    operations are deterministic. Unlike `keras.callbacks.BackupAndRestore` it keeps the states of random number
    generators and metrics, goes on in the middle of an epoch, after the batches that were seen, and on a mesh never
    gathers the experts. A checkpoint that could not be written whole, because the process was killed or the disk full,
    never takes the place of the one before it.

    Give it to `fit` as the last of the callbacks, so that what others do to the model is saved; on a mesh, the same in
    every process. What has to hold:

    - The data come in the same order when the script is started anew. A `tf.data` shuffle does that if it, or
      `keras.utils.set_random_seed`, has a seed: its order in an epoch follows from the seed and the number of passes
      over the dataset before, which are made again (without reading them), from `initial_epoch` on. So nothing else may
      iterate over the dataset in between, and no `cache` come behind a shuffle. Arrays that `fit` shuffles need
      `keras.utils.set_random_seed` if checkpoints are saved in mid-epoch. Where the seed is not that of the run before,
      a warning says so; likewise where a training on a dataset goes on in mid-epoch on a mesh that began on one
      device, or the other way round.
    - The batches of an epoch that were seen are read again, without training on them; with `steps_per_epoch` and a
      dataset that never ends, all from the first on.
    - The state is in the model, its metrics and its `optimizer`. Noise goes on if it comes from a
      `keras.random.SeedGenerator` of a layer, as in all layers of Keras and of this library. What callbacks remember
      (the patience of EarlyStopping, say) begins anew.

    When a training begins, Keras's `CallbackList.on_train_batch_begin` and `on_train_batch_end` are wrapped for the
    whole process, to pass over the batches that were seen; trainings without this callback go on as before.

    Args:
        directory: Where the checkpoints are, on storage that all processes share.
        save_freq: "epoch", the default, or a number of batches; the end of each epoch is saved in any case, and the
            number is counted from there.
        delete_checkpoint: Whether a finished training leaves nothing behind. Default True. Otherwise the same script
            goes on from its end with more epochs. A training that a callback stops in mid-epoch is saved, and not
            finished.
        save_before_exit: Whether SIGTERM, with which machines are taken back, lets the running batch end and saves
            before it ends the process. Default False: it ends the process at once, and the last checkpoint counts. In
            one process only, and in its main thread.
        settings: What the training depends on and `fit` does not know, such as the learning rate and the seed: a dict
            that JSON can hold. A checkpoint of other settings is refused. Default None.

    Raises:
        ValueError: If `save_freq` is neither; `directory` is a URL; `settings` cannot be written as JSON; the
            checkpoint found is damaged, of another model, of other settings, or not of a training like this one; the
            data cannot come in the same order again (a generator, `steps_per_epoch` of a dataset that ends, arrays
            shuffled without a seed); or the model is not built, or of a strategy other than `ExpertParallelStrategy`.
            When training begins: if `save_before_exit` is True in a cluster, or outside of the main thread.
        FileNotFoundError: If the checkpoint that was the last is gone.
        OSError: If a checkpoint could not be written. The one before is whole.

    Example:

    >>> resume = tf_moe.distribute.Resume("checkpoints", save_freq=1000)
    >>> history = model.fit(dataset, epochs=2, callbacks=[resume], verbose=0)
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        save_freq: str | int = "epoch",
        delete_checkpoint: bool = True,
        save_before_exit: bool = False,
        settings: dict[str, Any] | None = None,
    ):
        super().__init__()
        if save_freq != "epoch":
            save_freq = checks.integer("save_freq", save_freq, hint=' of batches, or "epoch"')
        self._folder = CheckpointFolder(directory)
        self.directory = self._folder.path
        self.save_freq = save_freq
        self.delete_checkpoint = checks.boolean("delete_checkpoint", delete_checkpoint)
        self.save_before_exit = checks.boolean("save_before_exit", save_before_exit)
        try:
            self.settings = json.loads(json.dumps(settings))  # as it will be read
        except (TypeError, ValueError) as error:
            raise ValueError(f"settings must be what JSON can hold. Received: settings={settings!r}.") from error
        self._epoch, self._initial_epoch, self._steps_per_epoch, self._found = 0, 0, None, None
        self._unsaved = None  # epoch and batch that the training has come to, if there is no checkpoint of that
        self._signals = contextlib.ExitStack()
        self._begins = self._terminated = self._cut_short = False

    def on_train_begin(self, logs=None):
        _check_strategy(self.model)
        self._begins, self._terminated, self._cut_short, self._unsaved = True, False, False, None
        data = data_of_fit(self.model)
        _check_data(data, in_mid_epoch=self.save_freq != "epoch" or self.save_before_exit)
        self._initial_epoch, self._steps_per_epoch = data.initial_epoch, data.steps_per_epoch
        barrier()  # the first process is done with the files of the fit before
        self._found = self._folder.last()
        barrier()  # every process has read it before any writes the next
        self.model._initial_epoch = None
        if self._found is not None:
            self._check_found(self._found, data)
            self.model._initial_epoch = self._found["epoch"]  # as keras.callbacks.BackupAndRestore does
            if not self._found["batch"]:  # before other callbacks begin an epoch, which may set the learning rate
                self._restore()
        if self.save_before_exit:
            self._catch_sigterm()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        if not self._begins:
            return
        self._begins, self.model._initial_epoch = False, None  # fit has read it; the next begins where it is told to
        batch = self._found["batch"] if self._found else 0
        # Restores when metrics have been reset, as they are in every epoch, and built, as they are in the first step.
        Replay(self.model, epoch - self._initial_epoch, batch, self._steps_per_epoch, self._restore).install()

    def on_train_batch_end(self, batch, logs=None):
        seen, at_once = batch + 1, self.model.steps_per_execution
        due = self.save_freq != "epoch" and seen // self.save_freq > (seen - at_once) // self.save_freq
        self._cut_short = self.model.stop_training and seen < (self.params["steps"] or math.inf)
        self._unsaved = self._epoch, seen
        self._save_and_exit(due or self._cut_short)

    def on_epoch_end(self, epoch, logs=None):
        if not self._cut_short:  # Keras says so of an epoch that was stopped, too
            self._unsaved = epoch + 1, 0
            self._save_and_exit(due=True)

    def on_train_end(self, logs=None):
        self._signals.close()
        self.model._initial_epoch = None
        finish(self.model)
        self._save_and_exit(due=False)  # a signal may have come after the last epoch, or there was none to train
        if self.delete_checkpoint and not self._cut_short:
            barrier()
            self._folder.delete()

    def _check_found(self, found, data):
        """Raise ValueError unless the last checkpoint is of a training like this one."""
        epochs, steps = self.params["epochs"], self.params["steps"]
        if (found["epoch"], found["batch"]) > (epochs, 0):
            raise ValueError(
                f"The checkpoint in {str(self.directory)!r} is of epoch {found['epoch']}, batch {found['batch']}. "
                f"Received: epochs={epochs}. Pass more, or another directory."
            )
        if found["epoch"] < data.initial_epoch:
            raise ValueError(
                f"The checkpoint in {str(self.directory)!r} is of epoch {found['epoch']}, batch {found['batch']}. "
                f"Received: initial_epoch={data.initial_epoch}. Pass that of the run before, or another directory."
            )
        if found["batch"] and found.get("initial_epoch", data.initial_epoch) != data.initial_epoch:
            raise ValueError(
                f"The checkpoint in {str(self.directory)!r} is of the middle of an epoch, in a training that began "
                f"with epoch {found['initial_epoch']}, from which passes over the data are counted. Received: "
                f"initial_epoch={data.initial_epoch}. Pass that of the run before, or another directory."
            )
        if (settings := found.get("settings")) != self.settings:
            raise ValueError(
                f"The checkpoint in {str(self.directory)!r} is of a training with other settings: "
                f"{_differences(settings, self.settings)}. Pass those, or another directory."
            )
        if found["steps"] != steps:
            raise ValueError(
                f"The checkpoint in {str(self.directory)!r} is of a training with {found['steps']} steps an epoch. "
                f"Received: data with {steps}. Pass the data of the run before, in batches of the same size."
            )
        if found["batch"] and (found["seed"] is None or found["seed"] != global_seed()):
            warnings.warn(
                "Training goes on in the middle of an epoch, and the seed is not that of the run before. If its data "
                "were shuffled without a seed of their own, some will now come twice and others not at all. Call "
                "keras.utils.set_random_seed first in the script, with the same seed every time.",
                stacklevel=2,
            )
        was_on_mesh = found.get("on_mesh", self._is_on_mesh)  # older files do not say
        if found["batch"] and was_on_mesh != self._is_on_mesh and data.is_dataset:
            # Keras builds a model of a strategy from a batch, and so begins every fit with one more pass over the data.
            before, now = ("a mesh", "one device") if was_on_mesh else ("one device", "a mesh")
            warnings.warn(
                f"Training goes on in the middle of an epoch on {now}, and that began on {before}. If its data are "
                "shuffled anew in every epoch, some will now come twice and others not at all, as their orders are not "
                f"the same on both. Go on with this epoch on {before}.",
                stacklevel=2,
            )

    @property
    def _is_on_mesh(self):
        return isinstance(self.model.distribute_strategy, ExpertParallelStrategy)

    def _restore(self):
        self._folder.restore(self._found, self.model, self._metrics(self._found["batch"]))

    def _metrics(self, batch):
        """The variables of the metrics, which count in the middle of an epoch."""
        return self.model.metrics_variables if batch else []

    def _save_and_exit(self, due):
        if self._unsaved and (due or self._terminated):
            epoch, batch = self._unsaved
            state = {"epoch": epoch, "batch": batch, "steps": self.params["steps"], "seed": global_seed()}
            state |= {"settings": self.settings, "on_mesh": self._is_on_mesh, "initial_epoch": self._initial_epoch}
            self._folder.save(state, self.model, self._metrics(batch))
            self._unsaved = None
        if self._terminated:
            self._terminated = False
            os.kill(os.getpid(), signal.SIGTERM)  # to the handler that was there before, which ends the process

    def _catch_sigterm(self):
        if dtensor.num_clients() > 1:
            raise ValueError(
                "save_before_exit needs a training in one process: several would stop after different batches. "
                f"Received: save_before_exit=True in a cluster of {dtensor.num_clients()}. Pass a save_freq instead."
            )

        def note(_, frame):
            self._terminated = frame_of_fit(self.model, frame) is not None
            self._signals.close()  # the next signal ends the process, also if no batch ever ends
            if not self._terminated:  # an exception has ended the training
                os.kill(os.getpid(), signal.SIGTERM)

        # None is the handler of a program that Python is only a part of, which cannot be put back.
        try:
            before = signal.signal(signal.SIGTERM, note) or signal.SIG_DFL
        except ValueError as error:
            raise ValueError(
                "save_before_exit needs a training in the main thread, the only one in which Python handles signals. "
                f"Received: save_before_exit=True in {threading.current_thread().name!r}. Call fit in the main thread, "
                "or pass a save_freq instead."
            ) from error
        self._signals.callback(signal.signal, signal.SIGTERM, before)


def _check_strategy(model: keras.Model) -> None:
    """Raise ValueError unless the model is on one device or on a mesh."""
    strategy = model.distribute_strategy
    with strategy.scope():
        on_one_device = not tf.distribute.has_strategy()
    if not (on_one_device or isinstance(strategy, ExpertParallelStrategy)):
        raise ValueError(
            "Resume needs a model on one device, or made in the scope of an ExpertParallelStrategy. Received: "
            f"{model.name!r}, of {type(strategy).__name__}. Use keras.callbacks.BackupAndRestore."
        )


def _check_data(data: FitData, in_mid_epoch: bool) -> None:
    """Raise ValueError unless the data can come in the same order again."""
    if not (data.is_dataset or data.is_arrays):
        raise ValueError(
            "Resume needs arrays or a tf.data.Dataset: another source cannot be told where to begin. Received: "
            f"{data.x!r}. tf.data.Dataset.from_generator makes a dataset of a function that begins anew when called."
        )
    if data.is_arrays and data.shuffle and in_mid_epoch and global_seed() is None:
        raise ValueError(
            "Without a seed arrays are shuffled in an order that does not come again, so a training cannot go on in "
            f"the middle of an epoch. Received: shuffle={data.shuffle}. Call keras.utils.set_random_seed first in the "
            'script, or pass shuffle=False, or leave save_freq="epoch" and save_before_exit=False.'
        )


def _differences(found: dict | None, received: dict | None) -> str:
    """What differs between two settings, in words."""
    found, received = found or {}, received or {}
    names = sorted(name for name in {*found, *received} if found.get(name) != received.get(name))
    return ", ".join(f"{name}={found.get(name)!r}, received: {received.get(name)!r}" for name in names) or "none"
