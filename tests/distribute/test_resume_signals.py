"""Trainings that a signal ends, at once or with the time to save."""

import json
import os
import signal
import subprocess
import sys
import threading
from unittest import mock

import keras
from absl.testing import parameterized

from tests.distribute.resuming import EPOCHS, STEPS, Interrupt, ResumeTestCase
from tests.processes import environment, write_script
from tf_moe.distribute import Resume, save_sharded

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


class SignalsTest(ResumeTestCase):
    def test_killed(self):
        """In a process of its own: at once, or with the time to save."""
        program = write_script(self, PROGRAM + KILLED)
        batches = int(self.rng.integers(3, STEPS * EPOCHS))
        signals = (signal.SIGKILL, signal.SIGTERM)
        runs = [
            subprocess.Popen(
                [sys.executable, program, self.directory / number.name, str(int(number)), str(batches)],
                env=environment(),
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
                spy = mock.patch("tf_moe.distribute.checkpoint_folder.save_sharded", wraps=save_sharded)
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
