"""Trainings that are interrupted and go on: weights and losses of those that are not, on one device to the last bit."""

import warnings
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.distribute.resuming import STEPS, Interrupt, ResumeTestCase
from tests.mesh.helpers import strategy_on
from tf_moe.distribute import Resume


class ResumeTest(ResumeTestCase):
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

    @parameterized.parameters("arrays", "known_length", "endless")
    def test_initial_epoch(self, kind):
        """Passes over the data are counted from it, when training begins and when it goes on."""

        def train(model, *callbacks, **more):
            data = {**self.data(kind), "initial_epoch": 1}
            self.fit(model, *callbacks, data=data, shuffle=kind == "arrays", **more)

        whole, begin, rest = Interrupt(), Interrupt(STEPS + 3), Interrupt()
        train(self.model(), whole)
        with self.assertRaises(KeyboardInterrupt):
            train(self.model(), begin, Resume(self.directory, 2))
        self.assertEqual(begin.losses, whole.losses[: len(begin.losses)])
        for first, pattern in (
            (0, "that began with epoch 1, .*initial_epoch=0. Pass that of the run before"),
            (3, "is of epoch 2, batch 2. Received: initial_epoch=3. Pass that of the run before"),
        ):
            with self.assertRaisesRegex(ValueError, pattern):
                self.fit(self.model(), Resume(self.directory, 2), data={**self.data(kind), "initial_epoch": first})
        train(self.model(), rest, Resume(self.directory, 2))
        self.assertNotEmpty(rest.losses)
        self.assertEqual(rest.losses, whole.losses[-len(rest.losses) :])
        self.assertGreaterEqual(len(begin.losses) + len(rest.losses), len(whole.losses))

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
