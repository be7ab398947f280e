"""Coming to the same place in the data again, under stock `model.fit`.

A callback can neither choose the batch that `fit` begins an epoch with nor see the data. But `fit` calls
`model.train_function` with the iterator over the batches, so a stand-in for that function can run through those that
were seen without training on them. Keras counts them as it counts any: its numbers of batches, the ends of its epochs
and its iterators are those of an uninterrupted run.
"""

import functools
import inspect
import itertools
import types
from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from tf_moe.distribute.batches import MeshIterator


class FitData(NamedTuple):
    """What a running `fit` was given.

    Attributes:
        x: Data: arrays, a `tf.data.Dataset` or something else.
        shuffle: Whether `fit` shuffles arrays.
        steps_per_epoch: Batches in an epoch, None for all.
        initial_epoch: Number of the first epoch, with which the passes over the data begin.
    """

    x: object
    shuffle: bool
    steps_per_epoch: int | None
    initial_epoch: int

    @property
    def is_dataset(self) -> bool:
        """Whether the data are a `tf.data.Dataset`."""
        return isinstance(self.x, tf.data.Dataset)

    @property
    def is_arrays(self) -> bool:
        """Whether the data are arrays."""
        return not self.is_dataset and all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(self.x))


def data_of_fit(model: keras.Model) -> FitData:
    """The arguments of the `fit` that calls, which Keras tells no callback: they are read from its frame.

    To be read when training begins: once it does, Keras has the number of an epoch that goes on as `initial_epoch`.
    """
    frame = frame_of_fit(model, inspect.currentframe())
    if frame is None:
        raise ValueError(f"Resume goes on with a training of model.fit. Received: {model.name!r} in another loop.")
    return FitData(*(frame.f_locals[name] for name in FitData._fields))


def frame_of_fit(model: keras.Model, frame: types.FrameType | None) -> types.FrameType | None:
    """The innermost call of the model's `fit` that is running in a frame; None if none is."""
    while frame and not (frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model):
        frame = frame.f_back
    return frame


def passes_before(
    dataset: tf.data.Dataset, epoch: int, steps_per_epoch: int | None, at_once: int = 1
) -> tuple[int, int]:
    """How many passes over the data Keras begins before that of an epoch, and how many batches of that it has taken.

    Args:
        dataset: The batches, as Keras has them.
        epoch: Number of the epoch, counted from the first of the `fit` that nobody interrupted.
        steps_per_epoch: As `fit` was told.
        at_once: `steps_per_execution`. Default 1.

    Raises:
        ValueError: If an epoch may begin anywhere in a pass.
    """
    length = int(dataset.cardinality())
    if steps_per_epoch is None:
        # Where it knows the length it begins a pass at the end of an epoch, and then another one that it uses.
        return (2 * epoch if length >= 0 else epoch), 0
    if length == steps_per_epoch:
        return epoch, 0
    if length == tf.data.INFINITE_CARDINALITY:
        return 0, epoch * -(-steps_per_epoch // at_once) * at_once
    raise ValueError(
        f"With steps_per_epoch Resume needs a dataset that never ends, such as dataset.repeat(). Received: "
        f"steps_per_epoch={steps_per_epoch}, and data {f'of {length} batches' if length >= 0 else 'of unknown length'}."
    )


class Replay:
    """Stands in for `model.train_function` until the batches that were seen are through, from `install` on.

    The first of them is trained on, which builds whatever of model, optimizer and metrics is not built yet, and then
    `restore` is called, which has to overwrite all of that. Meanwhile no callback is told of batches.

    Args:
        model: What is trained.
        epoch: The epoch that begins, the first of this fit, counted from the first of one that nobody interrupted.
        batch: How many of its batches were seen.
        steps_per_epoch: As `fit` was told.
        restore: Called once if `batch` is not 0.

    Raises:
        ValueError: If `batch` is within a call of `steps_per_execution` steps. From `fit`, too: as `passes_before`
            says, or if the data end too soon.
    """

    def __init__(
        self,
        model: keras.Model,
        epoch: int,
        batch: int,
        steps_per_epoch: int | None,
        restore: Callable[[], None],
    ):
        self._at_once = model.steps_per_execution
        if batch % self._at_once:
            raise ValueError(
                f"The checkpoint was saved after {batch} batches of an epoch. Received: a model compiled with "
                f"steps_per_execution={self._at_once}, which does not divide them. Compile as in the run before."
            )
        self._model, self._function, self._fit = model, None, _fit_of(model)
        self._epoch, self._steps_per_epoch, self._restore = epoch, steps_per_epoch, restore
        self._left = batch // self._at_once
        self._given = self._taken = None

    def install(self) -> None:
        """Takes the place of the model's `train_function`; to be called when an epoch begins."""
        _quieten_callbacks()
        finish(self._model)
        self._function, self._model.train_function = self._model.train_function, self

    @property
    def skipping(self) -> bool:
        """Whether the next batch is one that was seen."""
        return self._left > 0 and self._is_of_this_fit

    def skipped(self) -> None:
        """Notes that a batch that was seen is through."""
        self._left -= 1

    def __call__(self, iterator):
        if self._given is None and self._is_of_this_fit:
            self._begin(iterator)
        elif self._given is not iterator:  # the next pass; or the next fit, after an exception in this one
            finish(self._model)
            return self._function(iterator)
        elif self.skipping:
            self._take(self._at_once, at_least=1)  # the last call in an epoch may find fewer
        return self._model.get_metrics_result() if self.skipping else self._function(self._taken)

    @property
    def _is_of_this_fit(self):
        return _fit_of(self._model) is self._fit

    def _begin(self, iterator):
        """Come to the first batch of the epoch, and to what was saved."""
        self._given = iterator
        batches = iterator.batches if isinstance(iterator, MeshIterator) else iterator._dataset
        dataset = iterator.batches.dataset if isinstance(iterator, MeshIterator) else batches
        passes, seen = passes_before(dataset, self._epoch, self._steps_per_epoch, self._at_once)
        for _ in range(passes):  # the order of a dataset that is shuffled in every pass is fixed when the pass begins
            iterator = iter(batches)
        self._taken = iterator
        self._take(seen, at_least=seen)
        if self.skipping:
            try:
                self._function(self._taken)
            except (StopIteration, tf.errors.OutOfRangeError):
                raise _ended() from None
            self._restore()

    def _take(self, count, at_least):
        if sum(1 for _ in itertools.islice(self._taken, count)) < at_least:
            raise _ended()


def finish(model: keras.Model) -> None:
    """Give a model its own `train_function` back."""
    replay = model.train_function
    if isinstance(replay, Replay):
        model.train_function = replay._function
        replay._given = replay._taken = None  # which may hold a large buffer


def _ended():
    return ValueError(
        "The data ended before the place where the training was interrupted. Received: fewer batches than were seen "
        "then. Pass the data of the run before, in batches of the same size."
    )


def _fit_of(model):
    """What tells one call of `fit` from the next: the callback that keeps its losses."""
    return getattr(model, "history", None)


@functools.cache
def _quieten_callbacks() -> None:
    """Makes Keras tell no callback of batches that are skipped: logs, and files of ModelCheckpoint, would be wrong."""
    begin, end = keras.callbacks.CallbackList.on_train_batch_begin, keras.callbacks.CallbackList.on_train_batch_end

    @functools.wraps(begin)
    def on_train_batch_begin(callbacks, batch, logs=None):
        if _skipping_replay(callbacks) is None:
            begin(callbacks, batch, logs)

    @functools.wraps(end)
    def on_train_batch_end(callbacks, batch, logs=None):
        replay = _skipping_replay(callbacks)
        if replay is None:
            end(callbacks, batch, logs)
        else:
            replay.skipped()

    keras.callbacks.CallbackList.on_train_batch_begin = on_train_batch_begin
    keras.callbacks.CallbackList.on_train_batch_end = on_train_batch_end


def _skipping_replay(callbacks: keras.callbacks.CallbackList) -> Replay | None:
    """The stand-in by which the batch at hand is skipped. Callbacks of other loops may be of no model at all."""
    function = getattr(getattr(callbacks, "model", None), "train_function", None)
    return function if isinstance(function, Replay) and function.skipping else None
