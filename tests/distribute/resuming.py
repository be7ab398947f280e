"""Trainings that are interrupted, and what they go on with."""

import pathlib

import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.text.files import random_lines, text_of
from tf_moe.distribute import Resume
from tf_moe.text import build_vocabulary, contiguous_batches, sentence_batches

STEPS, EPOCHS = 6, 3  # of 22 examples in batches of 4


class Interrupt(keras.callbacks.Callback):
    """Stops a training like Ctrl-C, after some batches; keeps the losses until then."""

    def __init__(self, after=None):
        super().__init__()
        self.after, self.losses = after, []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append((batch, logs["loss"]))
        if len(self.losses) == self.after:
            raise KeyboardInterrupt


class ResumeTestCase(TestCase):
    """A small model, data of every kind, and a directory for the checkpoints."""

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
