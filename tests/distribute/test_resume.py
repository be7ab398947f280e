"""Trainings that are interrupted and go on: weights and losses of those that are not, on one device to the last bit."""

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import warnings
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tests.mesh.helpers import strategy_on
from tests.text.files import random_lines, text_of
from tf_moe.distribute import Resume, restore_sharded, save_sharded
from tf_moe.text import build_vocabulary, contiguous_batches, sentence_batches

ROOT = pathlib.Path(__file__).parents[2]
STEPS, EPOCHS = 6, 3  # of 22 examples in batches of 4

# What processes that are killed and the test itself run: noise in gate and dropout, shuffled data, a moving loss scale.
PROGRAM = f"""
import os, signal, sys
import keras
import numpy as np
import tf_moe

class Losses(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.losses = []
    def on_train_batch_end(self, batch, logs=None):
        self.losses.append((batch, logs["loss"]))

class Kill(keras.callbacks.Callback):
    def __init__(self, signal, batches):
        super().__init__()
        self.signal, self.batches = signal, batches
    def on_train_batch_begin(self, batch, logs=None):
        if self.batches == 0:
            os.kill(os.getpid(), self.signal)
        self.batches -= 1

def train(*callbacks):
    keras.utils.set_random_seed(7)
    x = np.random.RandomState(0).randn(22, 4).astype("float32")
    model = keras.Sequential([
        keras.Input((4,)),
        keras.layers.Dropout(0.3),
        tf_moe.layers.SparseMoE(4, 3, k=2, name="moe"),
        keras.layers.Dense(1),
    ])
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), 2.0, dynamic_growth_steps=4)
    model.compile(optimizer, "mse", metrics=["mae"])
    losses = Losses()
    history = model.fit(
        x, x.sum(1, keepdims=True), batch_size=4, epochs={EPOCHS}, verbose=0, validation_data=(x, x[:, :1]),
        callbacks=[losses, *callbacks],
    ).history
    return losses.losses, history, [v.numpy() for v in model.variables + model.optimizer.variables]
"""

KILLED = """
directory, number, batches = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resume = tf_moe.distribute.Resume(directory, 2, save_before_exit=number == signal.SIGTERM)
train(Kill(number, batches), resume)
"""


class Interrupt(keras.callbacks.Callback):
    """Stops a training like Ctrl-C, after some batches; keeps the losses until then."""

    def __init__(self, after=None):
        super().__init__()
        self.after, self.losses = after, []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append((batch, logs["loss"]))
        if len(self.losses) == self.after:
            raise KeyboardInterrupt


class ResumeTest(TestCase):
    examples = 22

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(self.get_temp_dir(), self._testMethodName)

    def model(self, at_once=1, width=3, seed=3, rate=0.3):
        """A model with dropout; without a seed of its own, but with the same weights every time."""
        keras.utils.set_random_seed(seed)
        layers = [keras.layers.Dense(width, "tanh"), keras.layers.Dropout(rate), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((None, 1)), *layers])
        model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], steps_per_execution=at_once)
        model.optimizer.build(model.trainable_variables)
        return model

    def fit(self, model, *callbacks, data=None, epochs=EPOCHS, shuffle=False):
        return model.fit(
            **(data or self.arrays()), epochs=epochs, verbose=0, shuffle=shuffle, callbacks=[*callbacks]
        ).history

    def interrupted(self, *callbacks, after=3, save_freq=2, model=None, **arguments):
        """Losses of a training that is stopped."""
        interrupt, resume = Interrupt(after), Resume(self.directory, save_freq)
        with self.assertRaises(KeyboardInterrupt):
            self.fit(model or self.model(), interrupt, *callbacks, resume, **arguments)
        return interrupt.losses

    def arrays(self):
        x = np.random.RandomState(0).randn(self.examples, 1, 1).astype("float32")
        return {"x": x, "y": x**2, "batch_size": 4}

    def dataset(self):
        arrays = self.arrays()
        return tf.data.Dataset.from_tensor_slices((arrays["x"], arrays["y"])).shuffle(22, seed=3).batch(4)

    def text(self, batches_of, *arguments, **more):
        """Batches of a text, for models that take numbers."""
        if not hasattr(self, "source"):
            self.source = text_of(self.get_temp_dir(), random_lines(self.rng, 30))
        batches = batches_of(
            self.source, build_vocabulary(self.source, 20), *arguments, shuffle_buffer=20, seed=5, **more
        )
        return batches.map(lambda x, y, w: (tf.cast(x, "float32")[..., None], tf.cast(y, "float32")[..., None], w))

    def data(self, kind):
        """Arguments of fit, made anew as when a script is started anew."""
        keras.utils.set_random_seed(4)
        return {
            "arrays": self.arrays,
            "known_length": lambda: {"x": self.dataset()},
            "known_length_and_steps": lambda: {"x": self.dataset(), "steps_per_epoch": STEPS},
            "endless": lambda: {"x": self.dataset().repeat(), "steps_per_epoch": STEPS - 1},
            "sentences": lambda: {"x": self.text(sentence_batches, 4, boundaries=(8,))},
            "windows": lambda: {"x": self.text(contiguous_batches, 2, 9).repeat(), "steps_per_epoch": 4},
        }[kind]()

    @parameterized.parameters(
        ("arrays", 2),
        ("known_length", 2, 2),
        ("known_length", "epoch"),
        ("known_length_and_steps", 2),
        ("endless", 4, 2),
        ("endless", "epoch", 2),
        ("sentences", 2),
        ("windows", 2),
    )
    def test_data(self, kind, save_freq, at_once=1):
        """Whatever the data and the length of epochs: every batch comes once, in order, with its number and noise."""
        if kind == "sentences":
            self.enterContext(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Your input ran out of data")  # their number is not known
        whole, rest, shuffle = Interrupt(), Interrupt(), kind == "arrays"
        model = self.model(at_once)
        variables = model.variables + model.optimizer.variables
        start = [v.numpy() for v in variables]
        history = self.fit(model, whole, data=self.data(kind), shuffle=shuffle)
        expected = [v.numpy() for v in variables]
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        after = int(self.rng.integers(len(whole.losses) // 2, len(whole.losses) - 1))
        seen = self.interrupted(after=after, save_freq=save_freq, model=model, data=self.data(kind), shuffle=shuffle)
        self.assertEqual(seen, whole.losses[:after])

        resumed = self.model(at_once)
        for weight in resumed.weights:
            weight.assign(weight + 1)
        ours = self.fit(resumed, rest, Resume(self.directory, save_freq), data=self.data(kind), shuffle=shuffle)
        self.assertEqual(rest.losses, whole.losses[-len(rest.losses) :], f"{after=}")
        self.assertGreaterEqual(after + len(rest.losses), len(whole.losses))
        if save_freq != "epoch":
            self.assertLess(after + len(rest.losses) - len(whole.losses), 2 * save_freq // at_once)
        for variable, value in zip(resumed.variables + resumed.optimizer.variables, expected, strict=True):
            self.assertAllEqual(variable, value, f"{after=}, {variable.path}")
        for name, values in ours.items():
            self.assertEqual(values, history[name][-len(values) :])
        self.assertFalse(self.directory.exists())

    def test_killed(self):
        """In a process of its own: at once, or with the time to save."""
        program = self.directory.with_suffix(".py")
        program.write_text(PROGRAM + KILLED)
        batches = int(self.rng.integers(3, STEPS * EPOCHS))
        signals = (signal.SIGKILL, signal.SIGTERM)
        runs = [
            subprocess.Popen(
                [sys.executable, program, self.directory / number.name, str(int(number)), str(batches)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in signals
        ]
        here = {}
        exec(PROGRAM, here)
        losses, history, expected = here["train"]()
        for number, run in zip(signals, runs, strict=True):
            _, error = run.communicate(timeout=600)
            self.assertEqual(run.returncode, -number, error)
            ours, our_history, variables = here["train"](Resume(self.directory / number.name, 2))
            # The signal comes when a batch begins: SIGTERM lets it end, and saves.
            seen = batches + 1 if number == signal.SIGTERM else batches // 2 * 2
            self.assertEqual(ours, losses[seen:], f"{number.name} after {batches} batches")
            for variable, value in zip(variables, expected, strict=True):
                self.assertAllEqual(variable, value)
            for name, values in our_history.items():
                self.assertEqual(values, history[name][-len(values) :], name)

    def test_full_disk(self):
        """The checkpoint that could not be written leaves nothing behind, and the one before is whole."""

        class FillDisk(keras.callbacks.Callback):
            """From the fifth batch on no file can have more than 2000 bytes: that of the weights has more."""

            def on_train_batch_end(self, batch, logs=None):
                if batch == 4:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))

        before, model = resource.getrlimit(resource.RLIMIT_FSIZE), self.model(width=300)
        try:
            with self.assertRaisesRegex(OSError, f"could not be written to '{self.directory}'.*once the cause is gone"):
                self.fit(model, FillDisk(), Resume(self.directory, 2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        last = "epoch-0-batch-4"
        files = {f"{last}.data-00000-of-00001", f"{last}.index", "state.json"}
        self.assertEqual({file.name for file in self.directory.iterdir()}, files)
        again = self.model(width=300)
        restore_sharded(self.directory / last, again)
        self.assertEqual(again.optimizer.iterations, 4)
        whole, rest = Interrupt(), Interrupt()
        self.fit(self.model(width=300), whole)
        self.fit(again, rest, Resume(self.directory, 2))
        self.assertEqual(rest.losses, whole.losses[4:])

    def test_noise_of_another_seed(self):
        """The state of a generator goes on, whatever it began with; and one is told that the data may not."""
        whole, rest = Interrupt(), Interrupt()
        self.fit(self.model(), whole)
        self.interrupted(after=9)
        with self.assertWarnsRegex(UserWarning, "the seed is not that of the run before.*set_random_seed"):
            self.fit(self.model(seed=4), rest, Resume(self.directory, 2))
        self.assertEqual(rest.losses, whole.losses[8:])

    def test_a_finished_training_goes_on_for_more_epochs(self):
        whole, rest = Interrupt(), Interrupt()
        model = self.model()
        self.fit(model, whole)
        self.fit(self.model(), Resume(self.directory, save_freq=4, delete_checkpoint=False), epochs=1)
        (self.directory / "notes.txt").write_text("not of Resume")
        (self.directory / "epoch-0-batch-1_parts").mkdir()  # of a process that was killed when it wrote
        (self.directory / "state.json.new").write_text("{")  # and of one that was when it told of it
        ours = self.model()
        self.fit(ours, rest, Resume(self.directory))
        self.assertEqual(rest.losses, whole.losses[STEPS:])
        self.assertEqual([file.name for file in self.directory.iterdir()], ["notes.txt"])
        # And nothing of it is left in the model.
        self.assertLen(self.fit(ours, epochs=1)["loss"], 1)

    def test_a_deletion_that_was_interrupted(self):
        """Of what is left nothing counts, and the training begins anew."""
        self.fit(self.model(), Resume(self.directory, delete_checkpoint=False), epochs=1)
        deleted, unlink = [], pathlib.Path.unlink

        def unlink_one(file, *arguments, **more):
            if file.parent != self.directory:
                return unlink(file, *arguments, **more)
            if deleted:
                raise KeyboardInterrupt
            deleted.append(file.name)
            return unlink(file, *arguments, **more)

        # In an order in which the state would not come first.
        names = sorted(file.name for file in self.directory.iterdir())
        glob = mock.patch.object(pathlib.Path, "glob", lambda folder, _: [folder / name for name in names])
        with glob, mock.patch.object(pathlib.Path, "unlink", unlink_one), self.assertRaises(KeyboardInterrupt):
            self.fit(self.model(), Resume(self.directory), epochs=1)
        self.assertEqual(deleted, ["state.json"])
        whole, again = Interrupt(), Interrupt()
        self.fit(self.model(), whole, epochs=1)
        self.fit(self.model(), again, Resume(self.directory), epochs=1)
        self.assertEqual(again.losses, whole.losses)
        self.assertFalse(self.directory.exists())

    def test_sigterm_in_a_thread(self):
        """Python handles signals in the main one only."""
        errors = []

        def train():
            try:
                self.fit(self.model(), Resume(self.directory, save_before_exit=True))
            except ValueError as error:
                errors.append(str(error))

        thread = threading.Thread(target=train, name="trainer")
        thread.start()
        thread.join()
        self.assertRegex(errors[0], "main thread.*save_before_exit=True in 'trainer'. Call fit in the main thread")

    def test_files_of_others_stay(self):
        """Also those whose names begin like its own: those of another callback, a copy that someone kept."""
        others = {
            *(f"epoch-{epoch:02d}.keras" for epoch in range(1, EPOCHS + 1)),
            "epoch-0-batch-2.keras",
            "epoch-0-batch-2.index.bak",
            "epoch-best",
            "epochs",
            "state.json.bak",
        }
        (self.directory / "epoch-best").mkdir(parents=True)
        (self.directory / "epoch-best" / "model.keras").touch()
        for name in others - {"epoch-best"}:
            (self.directory / name).touch()
        saved = keras.callbacks.ModelCheckpoint(self.directory / "epoch-{epoch:02d}.keras")
        self.fit(self.model(), saved, Resume(self.directory, 2))
        self.assertEqual({file.name for file in self.directory.iterdir()}, others)
        self.assertTrue((self.directory / "epoch-best" / "model.keras").exists())

    def test_the_next_fit_waits_for_the_first_process(self):
        """Which writes and deletes for all of them, and may be doing that for the fit before when this one begins."""
        whole, rest = Interrupt(), Interrupt()
        self.fit(self.model(), whole)
        self.fit(self.model(), Resume(self.directory, delete_checkpoint=False), epochs=1)
        state = self.directory / "state.json"
        late = state.rename(state.with_suffix(".late"))

        def barrier():  # where the first process comes to when it has told of its last checkpoint
            if late.exists():
                late.rename(state)

        with mock.patch("tf_moe.distribute.resume.barrier", barrier):
            self.fit(self.model(), rest, Resume(self.directory))
        self.assertEqual(rest.losses, whole.losses[STEPS:])

    def test_epochs_shorter_than_save_freq(self):
        """Their ends are saved all the same."""
        whole, rest = Interrupt(), Interrupt()
        self.fit(self.model(), whole)
        self.interrupted(after=9, save_freq=100)
        self.fit(self.model(), rest, Resume(self.directory, save_freq=100))
        self.assertEqual(rest.losses, whole.losses[STEPS:])

    @parameterized.parameters("epoch", 4)
    def test_a_training_that_was_stopped_in_mid_epoch(self, save_freq):
        """Keras ends the epoch, which is not over."""
        whole, begin, rest = Interrupt(), Interrupt(), Interrupt()
        self.fit(self.model(), whole)
        model = self.model()

        def stop(batch, logs):
            model.stop_training = len(begin.losses) == STEPS + 3

        stopping = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
        self.fit(model, begin, stopping, Resume(self.directory, save_freq))
        self.fit(self.model(), rest, Resume(self.directory, save_freq))
        self.assertEqual(begin.losses + rest.losses, whole.losses)
        self.assertFalse(self.directory.exists())

    def test_a_training_that_was_stopped_keeps_its_end(self):
        """Which is no multiple of save_freq: more epochs begin after it."""
        whole, rest = Interrupt(), Interrupt()
        self.fit(self.model(), whole)
        model = self.model()

        def stop(epoch, logs):
            model.stop_training = True

        callbacks = (
            keras.callbacks.LambdaCallback(on_epoch_end=stop),
            Resume(self.directory, 4, delete_checkpoint=False),
        )
        self.fit(model, *callbacks)
        self.fit(self.model(), rest, Resume(self.directory, 4))
        self.assertEqual(rest.losses, whole.losses[STEPS:])

    @parameterized.parameters("gs://bucket/run", pathlib.Path("gs://bucket/run"), "hdfs://host:1/run")
    def test_urls_are_refused(self, url):
        """They would be local folders, gone with the machine."""
        with self.assertRaisesRegex(ValueError, "directory='(gs|hdfs):/.*/run'. Mount the storage"):
            Resume(url)

    def test_other_settings_are_refused(self):
        settings = {"rate": 0.1, "shape": (2, 3), "name": None}
        self.fit(self.model(), Resume(self.directory, delete_checkpoint=False, settings=settings), epochs=1)
        same = Resume(self.directory, delete_checkpoint=False, settings=dict(settings, shape=[2, 3]))
        self.assertEmpty(self.fit(self.model(), same, epochs=1))  # it goes on, and has nothing to do
        for other, pattern in (
            (dict(settings, rate=0.2), "other settings: rate=0.1, received: 0.2. Pass those, or another dir"),
            (None, "name=None|rate=0.1, received: None"),
        ):
            with self.assertRaisesRegex(ValueError, pattern):
                self.fit(self.model(), Resume(self.directory, settings=other), epochs=1)
        with self.assertRaisesRegex(ValueError, "what JSON can hold. Received: settings={1}"):
            Resume(self.directory, settings={1})

    def test_the_learning_rate_of_an_epoch(self):
        """A callback before it sets the rate of the epoch that begins; what is restored is from the epoch before."""
        rates = []
        for epochs in (1, 3):
            model = self.model()
            model_rate = keras.callbacks.LearningRateScheduler(lambda epoch: 1.0 / (epoch + 1))
            seen = keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs, model=model: rates.append(float(model.optimizer.learning_rate))
            )
            self.fit(model, model_rate, seen, Resume(self.directory, delete_checkpoint=False), epochs=epochs)
        self.assertAllClose(rates, np.repeat([1, 1 / 2, 1 / 3], STEPS))

    def test_the_fit_after_an_exception(self):
        """Nothing of a training that was left stays in the model, whenever that happened."""

        def fail(*_):
            raise KeyboardInterrupt

        self.interrupted(after=4)
        whole, model = Interrupt(), self.model()
        with self.assertRaises(KeyboardInterrupt):
            self.fit(model, Resume(self.directory, 2), keras.callbacks.LambdaCallback(on_epoch_begin=fail))
        self.fit(model, whole, epochs=1)
        self.assertLen(whole.losses, STEPS)
        self.assertNotIn("Replay", type(model.train_function).__name__)

    def test_sigterm_after_an_exception(self):
        """There is no batch whose end could be waited for: the signal is whose it was before."""

        def fail(*_):
            raise KeyboardInterrupt

        seen = []
        before = signal.signal(signal.SIGTERM, lambda *_: seen.append("before"))
        try:
            with self.assertRaises(KeyboardInterrupt):
                resume = Resume(self.directory, 2, save_before_exit=True)
                self.fit(self.model(), resume, keras.callbacks.LambdaCallback(on_epoch_begin=fail))
            os.kill(os.getpid(), signal.SIGTERM)
            self.assertEqual(seen, ["before"])
        finally:
            signal.signal(signal.SIGTERM, before)

    @parameterized.parameters((4, True), ("epoch", True), (4, False))
    def test_sigterm_when_all_epochs_are_over(self, save_freq, delete_checkpoint):
        """What was trained is saved if it was not, and the process ends; started again, nothing is left to do."""

        def end(*_):
            raise SystemExit

        def terminate(*_):
            if model.optimizer.iterations == STEPS * EPOCHS:
                os.kill(os.getpid(), signal.SIGTERM)

        saved, last = [], f"epoch-{EPOCHS}-batch-0"
        model, before = self.model(), signal.signal(signal.SIGTERM, end)
        try:
            for moment in ("on_epoch_end", "on_train_begin"):  # and then there is no epoch
                resume = Resume(self.directory, save_freq, delete_checkpoint, save_before_exit=True)
                signals = keras.callbacks.LambdaCallback(**{moment: terminate})
                spy = mock.patch("tf_moe.distribute.resume.save_sharded", wraps=save_sharded)
                with spy as save, self.assertRaises(SystemExit):
                    self.fit(model, resume, signals)
                saved += [call.args[0].name for call in save.call_args_list]
                self.assertIs(signal.getsignal(signal.SIGTERM), end)
                self.assertEqual(json.loads((self.directory / "state.json").read_text())["checkpoint"], last)
        finally:
            signal.signal(signal.SIGTERM, before)
        self.assertEqual(saved.count(last), 1)  # to write it again could spoil it
        again, rest = self.model(), Interrupt()
        self.fit(again, rest, Resume(self.directory, save_freq))
        self.assertEmpty(rest.losses)
        for ours, expected in zip(again.variables, model.variables, strict=True):
            self.assertAllEqual(ours, expected)
        self.assertFalse(self.directory.exists())

    @parameterized.parameters(("known_length", 2, True), ("known_length", "epoch", False), ("arrays", 2, False))
    def test_from_one_device_to_a_mesh_and_back(self, kind, save_freq, is_told):
        """In the middle of an epoch a dataset does not come in the same order, which one is told; arrays do."""
        self.examples = 24  # batches of one size, of which a mesh makes one program

        def model_on(strategy):
            with strategy.scope():
                return self.model(rate=0)  # the noise of Keras's dropout is another one on a mesh

        whole, places, shuffle = Interrupt(), (tf.distribute.get_strategy(), strategy_on(2)), kind == "arrays"
        self.fit(model_on(places[0]), whole, data=self.data(kind), shuffle=shuffle, epochs=2)
        for began, goes_on in (places, places[::-1]):
            model, data, rest = model_on(began), self.data(kind), Interrupt()
            self.interrupted(model=model, after=STEPS + 3, save_freq=save_freq, data=data, shuffle=shuffle)
            model, data = model_on(goes_on), self.data(kind)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.fit(model, rest, Resume(self.directory, save_freq), data=data, shuffle=shuffle, epochs=2)
            self.assertEqual(any("that began on" in str(warning.message) for warning in caught), is_told)
            if kind == "arrays":
                self.assertAllClose(rest.losses, whole.losses[-len(rest.losses) :])

    def test_callbacks_of_other_loops(self):
        """Keras's lists of callbacks, which were taught to skip, are told of batches where there is no model too."""
        self.fit(self.model(), Resume(self.directory, 2), epochs=1)
        seen = []
        callbacks = keras.callbacks.CallbackList(
            [keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))]
        )
        callbacks.on_train_batch_begin(0)
        callbacks.on_train_batch_end(0)
        self.assertEqual(seen, [0])
