"""The last checkpoint of a training, in a directory where there may be files of others."""

import contextlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf
from tensorflow.experimental import dtensor

from tf_moe.distribute.checkpoint import restore_sharded, save_sharded

_STATE = "state.json"
# All that is made here of the files in a directory: the state, checkpoints and their parts.
_OURS = re.compile(r"state\.json(\.new)?|epoch-\d+-batch-\d+(\.index|\.data-\d+-of-\d+|_parts)", re.ASCII)
# Such as gs://bucket/run, of which a pathlib.Path leaves one slash. One letter is a drive of Windows.
_URL = re.compile(r"\w\w+:/")
# What a state has to say: the checkpoint, batches seen of an epoch, how many it has, the seed of the order of the data.
_FIELDS = {"checkpoint": str, "epoch": int, "batch": int, "steps": int | None, "seed": int | None}


class CheckpointFolder:
    """Where `Resume` writes: one checkpoint, and a small file, the state, which says what it is of.

    A checkpoint counts once the state names it, so one that was not written whole never takes the place of the one
    before. In a cluster every process writes its part of a checkpoint, and the first does the rest for all.

    Args:
        directory: Path of the directory, which need not be there yet.

    Raises:
        ValueError: If it is a URL.
    """

    def __init__(self, directory: str | os.PathLike):
        if _URL.match(os.fspath(directory)):  # for pathlib a local folder of that name
            raise ValueError(
                f"Resume writes to a file system, and not to a URL. Received: directory={str(directory)!r}. Mount the "
                "storage, and pass the folder where it is mounted."
            )
        self.path = pathlib.Path(directory)

    def last(self) -> dict[str, Any] | None:
        """The state of the last checkpoint; None without one. ValueError if it is damaged."""
        file = self.path / _STATE
        if not file.exists():
            return None
        text = file.read_text(encoding="utf-8", errors="replace")
        try:
            state = json.loads(text)
            if all(isinstance(state[name], kind) for name, kind in _FIELDS.items()):
                return state
            cause = None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            cause = error
        raise ValueError(
            f"{str(file)!r} is damaged, or not of Resume. Received: {text[:80]!r}. Delete the directory to begin anew."
        ) from cause

    def restore(self, state: dict[str, Any], model: keras.Model, others: Iterable[keras.Variable]) -> None:
        """Gives a model, its optimizer and other variables the values of the checkpoint that a state names."""
        restore_sharded(self.path / state["checkpoint"], model, others)

    def save(self, state: dict[str, Any], model: keras.Model, others: Iterable[keras.Variable]) -> None:
        """A new checkpoint; then, at one stroke, the word that it is the one; then the old one goes.

        Args:
            state: What it is of: "epoch" and "batch", and what else JSON can hold; its name is added.
            model: Saved with its optimizer.
            others: Further variables.

        Raises:
            OSError: If it could not be written. The one before is whole.
        """
        name = f"epoch-{state['epoch']}-batch-{state['batch']}"
        new = self.path / f"{_STATE}.new"
        try:
            save_sharded(self.path / name, model, others)
            if dtensor.client_id() != 0:
                return
            new.write_text(json.dumps({"checkpoint": name, **state}), encoding="utf-8")
            new.replace(self.path / _STATE)
        except (tf.errors.OpError, OSError) as error:
            if dtensor.client_id() == 0:
                self._delete(lambda file: file.name.startswith((f"{name}.", f"{name}_", new.name)))
            raise OSError(
                f"A checkpoint could not be written to {str(self.path)!r}. Received: {error}. The one before is "
                "whole: once the cause is gone, start the script again, and training goes on from it."
            ) from error
        self._delete(lambda file: not file.name.startswith((f"{name}.", _STATE)))

    def delete(self) -> None:
        """Deletes what is of this class, in the first process; then the directory, if there are no files of others."""
        if dtensor.client_id() == 0 and self.path.exists():
            self._delete(lambda _: True)
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def _delete(self, chosen: Callable[[pathlib.Path], bool]) -> None:
        # The state first: without it whatever else an interruption leaves is nothing, and with it a damaged checkpoint.
        for file in sorted(self.path.glob("*"), key=lambda file: file.name != _STATE):
            if _OURS.fullmatch(file.name) and chosen(file):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
