"""Files written from a mesh: they load anywhere, also on meshes of other sizes."""

import contextlib
import pathlib
import random
import tempfile
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from tensorflow.experimental import dtensor

import tf_moe
from tests.base import TestCase
from tests.distribute.helpers import CLOSE, VOCABULARY, compiled, language_model, moe_of, same_weights
from tests.mesh.helpers import specs_of, strategy_on
from tf_moe.distribute import keras_methods


class SavingTest(TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.get_temp_dir())
        self.x = self.rng.integers(0, VOCABULARY, (8, 3)).astype("int32")

    def trained(self, strategy):
        """A model after a step, so that its optimizer has something to lose."""
        with strategy.scope():
            model = compiled(language_model(recurrent=False))
        same_weights(self.rng, model)
        model.train_on_batch(self.x, self.x)
        return model

    def untrained(self, strategy, recurrent=False):
        """The same without the step, which takes long to trace: its optimizer's state is random."""
        with strategy.scope():
            model = compiled(language_model(recurrent=recurrent))
            model.optimizer.build(model.trainable_variables)
        same_weights(self.rng, model)
        for variable in model.optimizer.variables:
            variable.assign(self.normal(*variable.shape) if "float" in variable.dtype else 3)
        return model

    def assert_same_variables(self, ours, expected):
        for a, b in zip(ours.variables, expected.variables, strict=True):
            if "seed_generator" not in b.path:  # which Keras does not save
                self.assertAllEqual(a, b, msg=b.path)

    def test_model_goes_from_mesh_to_mesh_and_to_one_device(self):
        model = self.trained(strategy_on(2))
        model.save(self.folder / "model.keras")
        one = keras.models.load_model(self.folder / "model.keras")
        with strategy_on(4, 2).scope():
            many = keras.models.load_model(self.folder / "model.keras")
        for loaded in (one, many):
            self.assert_same_variables(loaded, model)
            self.assert_same_variables(loaded.optimizer, model.optimizer)
        slots = [v for v in many.optimizer.variables if "experts" in v.path]
        self.assertLen(slots, 4)
        for variable in (moe_of(many).experts.hidden_kernel, *slots):
            self.assertEqual(specs_of(variable.value), ["expert", "", ""])
        one.evaluate(self.x, self.x, verbose=0)
        self.assertAllClose(many.predict(self.x, verbose=0), one.predict(self.x, verbose=0), **CLOSE)
        many.train_on_batch(self.x, self.x)
        self.assertEqual(many.optimizer.iterations.numpy(), 2)

        # And back.
        one.save(self.folder / "one.keras")
        with strategy_on(2).scope():
            again = keras.models.load_model(self.folder / "one.keras")
        self.assert_same_variables(again.optimizer, model.optimizer)

    def test_a_part_on_a_disk_of_its_own(self):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        with (
            mock.patch.object(dtensor, "num_clients", return_value=2),
            self.assertRaisesRegex(FileNotFoundError, r"does not see \['.*/local_parts/1'\]"),
        ):
            tf_moe.distribute.save_sharded(self.folder / "local", model)
        self.assertFalse((self.folder / "local.index").exists())

    def test_weights(self):
        model = self.untrained(strategy_on(2))
        model.save_weights(self.folder / "model.weights.h5")
        one = compiled(language_model(recurrent=False))
        one.build((None, None))
        one.optimizer.build(one.trainable_variables)
        one.load_weights(self.folder / "model.weights.h5")
        self.assert_same_variables(one.optimizer, model.optimizer)
        for ours, expected in zip(one.get_weights(), model.get_weights(), strict=True):
            self.assertAllEqual(ours, expected)
        one.set_weights([self.normal(*w.shape) for w in one.get_weights()])
        one.save_weights(self.folder / "one.weights.h5")
        model.load_weights(self.folder / "one.weights.h5")
        for ours, expected in zip(model.get_weights(), one.get_weights(), strict=True):
            self.assertAllEqual(ours, expected)

    def test_what_other_processes_write_is_thrown_away(self):
        """Also where writing fails."""
        model = self.untrained(strategy_on(2))
        for name in ("model.weights.h5", "model.unknown"):
            with (
                mock.patch.object(keras_methods.dtensor, "num_clients", return_value=2),
                mock.patch.object(keras_methods.dtensor, "client_id", return_value=1),
                mock.patch.object(tempfile, "tempdir", str(self.folder)),
                self.assertRaises(ValueError) if "unknown" in name else contextlib.nullcontext(),
            ):
                model.save_weights(self.folder / name)
            self.assertEmpty([*self.folder.iterdir()])

    def test_export(self):
        model = self.untrained(strategy_on(2), recurrent=True)
        model.export(self.folder / "exported", verbose=False)
        served = tf.saved_model.load(self.folder / "exported")
        self.assertAllClose(served.serve(self.x), model.predict(self.x, verbose=0), **CLOSE)
        for size, time in ((1, 3), (3, 5)):  # another batch, another time
            x = np.tile(self.x[:1, :1], (size, time))
            self.assertAllClose(
                served.serve(x)[:, :1], served.serve(self.x[:1])[:, :1].numpy().repeat(size, 0), **CLOSE
            )

    def test_export_draws_no_random_numbers(self):
        """One process of a cluster exports; a model that is made afterwards has the same weights in all."""
        with strategy_on(2).scope():
            model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dropout(0.1)])
        state = random.getstate()
        model.export(self.folder / "random", verbose=False)
        self.assertEqual(random.getstate(), state)

    def test_export_of_what_only_this_script_knows(self):
        """On one device nothing has to be registered, or declared safe."""

        class Dense(keras.layers.Layer):
            """Not that of Keras."""

            def call(self, x):
                return x + 1

        with strategy_on(2).scope():
            layers = [keras.layers.Dense(2), Dense(), keras.layers.Lambda(lambda x: 3 * x)]
            model = keras.Sequential([keras.Input((3,)), *layers])
        x = self.normal(4, 3)
        model.export(self.folder / "own", verbose=False)
        served = tf.saved_model.load(self.folder / "own")
        self.assertAllClose(served.serve(x), model.predict(x, verbose=0), **CLOSE)
        with self.assertRaisesRegex(ValueError, "safe_mode"):
            keras.layers.Lambda.from_config(layers[-1].get_config())

    def test_checkpoint(self):
        strategy = strategy_on(2)
        model = self.untrained(strategy)
        checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        path = checkpoint.save(self.folder / "checkpoint")
        kept = [v for v in model.variables + model.optimizer.variables if "seed_generator" not in v.path]
        variables = [v.numpy() for v in kept]
        for variable in kept:
            variable.assign(np.zeros(variable.shape))
        checkpoint.restore(path)
        for ours, expected in zip(kept, variables, strict=True):
            self.assertAllEqual(ours, expected)
        self.assertEqual(specs_of(moe_of(model).experts.hidden_kernel.value), ["expert", "", ""])

    @parameterized.named_parameters(
        (
            "shape",
            lambda: [keras.layers.Dense(3), keras.layers.Dense(5)],
            r"'model/2/kernel' has shape \[3, 2\].* \[3, 5\]",
        ),
        (
            "dtype",
            lambda: [keras.layers.Dense(3), keras.layers.Dense(2, dtype="float16")],
            "'model/2/kernel' has dtype float32, for a variable of dtype float16",
        ),
        (
            "missing",
            lambda: [keras.layers.Dense(n) for n in (3, 2, 4)],
            r"there is no 'model/4/kernel', .* shape \[2, 4\]",
        ),
    )
    def test_a_sharded_checkpoint_of_another_model_changes_nothing(self, layers, message):
        """Also where only the last variables are others."""

        def model(layers):
            return keras.Sequential([keras.Input((4,)), *layers])

        tf_moe.distribute.save_sharded(self.folder / "sharded", model([keras.layers.Dense(n) for n in (3, 2)]))
        other = model(layers())
        before = other.get_weights()
        with self.assertRaisesRegex(ValueError, f"of another model. Received: .*{message}"):
            tf_moe.distribute.restore_sharded(self.folder / "sharded", other)
        for ours, expected in zip(other.get_weights(), before, strict=True):
            self.assertAllEqual(ours, expected)

    def test_models_elsewhere_are_left_alone(self):
        """Keras's methods are wrapped once a strategy has been made; for other models nothing changes."""
        strategy_on(2)
        one = compiled(language_model(recurrent=False))
        one.train_on_batch(self.x, self.x)
        one.save(self.folder / "model.keras")
        one.export(self.folder / "exported", verbose=False)
        again = keras.models.load_model(self.folder / "model.keras")
        self.assertAllClose(again.predict_on_batch(self.x), one.predict_on_batch(self.x))
        exported = tf.saved_model.load(self.folder / "exported")
        self.assertAllClose(exported.serve(self.x), one(self.x), **CLOSE)
