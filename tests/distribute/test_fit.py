"""Stock Keras training on a mesh: the history of a model is the one it has on one device."""

import contextlib
import pathlib
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tests.distribute.helpers import (
    CLOSE,
    VOCABULARY,
    compiled,
    histories_close,
    language_model,
    moe_of,
    same_weights,
)
from tests.mesh.helpers import strategy_on
from tf_moe.distribute import keras_methods
from tf_moe.layers import SparseMoE


class FitTest(TestCase):
    def pair(self, strategy, make):
        """The same model on one device and on a mesh, its gates not untrained."""
        one = make()
        one.run_eagerly = one.steps_per_execution == 1  # to be traced takes longer than the steps
        with strategy.scope():
            many = make()
        same_weights(self.rng, one, many)
        return one, many

    def sentences(self, *shape):
        """Words, 0 being padding at the end of some; and the next words."""
        x = self.rng.integers(1, VOCABULARY, shape)
        x[:: shape[0] // 2 - 1, -2:] = 0
        return x.astype("int32"), np.roll(x, -1, 1).astype("int32")

    def assert_same_weights(self, one, many, **close):
        for expected, ours in zip(one.weights, many.weights, strict=True):
            self.assertAllClose(ours, expected, msg=expected.path, **{**CLOSE, **close})

    def test_epochs_with_validation(self):
        """Masks, sample weights, metrics, and batches that do not divide evenly."""
        strategy = strategy_on(2)
        one, many = self.pair(strategy, lambda: compiled(language_model(), weighted_metrics=["accuracy"]))
        before = one.get_weights()
        x, y = self.sentences(21, 4)  # the last batch has 5
        weights = self.rng.random(x.shape)
        histories = [
            model.fit(
                x, y, 8, epochs=2, shuffle=False, verbose=0, sample_weight=weights, validation_data=(x[:13], y[:13])
            ).history
            for model in (many, one)
        ]
        histories_close(self, *histories)
        self.assertLen(histories[0], 14)  # loss, accuracy and five numbers of the layer, each for validation too
        self.assert_same_weights(one, many)
        self.assertNotAllClose(before[1], one.get_weights()[1], atol=1e-3)
        self.assertAllClose(many.predict(x, 8, verbose=0), one.predict(x, 8, verbose=0), **CLOSE)
        ours, expected = (model.evaluate(x, y, 8, verbose=0, return_dict=True) for model in (many, one))
        histories_close(self, ours, expected)

    def test_in_the_scope(self):
        """All of it in one block, as programs for MirroredStrategy have it."""
        x, y = self.sentences(21, 4)
        one = compiled(language_model(recurrent=False))
        with strategy_on(2).scope():
            many = compiled(language_model(recurrent=False))
            same_weights(self.rng, one, many)
            ours = many.fit(x, y, 8, shuffle=False, verbose=0).history
            dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
            evaluated = many.evaluate(dataset, verbose=0, return_dict=True)
            predicted = many.predict(x, 8, verbose=0)
            self.assertAllEqual([len(words) for words, _ in dataset], [8, 8, 5])
        histories_close(self, ours, one.fit(x, y, 8, shuffle=False, verbose=0).history)
        histories_close(self, evaluated, one.evaluate(x, y, 8, verbose=0, return_dict=True))
        self.assertAllClose(predicted, one.predict(x, 8, verbose=0), **CLOSE)

    @parameterized.named_parameters(
        (
            "clipping_and_averages",
            {},
            {"global_clipnorm": 0.1, "use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
            {},
        ),
        ("accumulation", {}, {"gradient_accumulation_steps": 2}, {}),
        ("steps_per_execution", {}, {}, {"steps_per_execution": 2}),
        ("hierarchical", {"num_experts": (4, 2), "k": (2, 2)}, {}, {}),
        ("constraint", {"kernel_constraint": keras.constraints.MaxNorm(0.5)}, {}, {}),
    )
    def test_options(self, layer, optimizer, arguments):
        def make():
            model = language_model(layer, recurrent=False)
            return compiled(model, keras.optimizers.Adam(0.01, epsilon=1e-5, **optimizer), **arguments)

        one, many = self.pair(strategy_on(2), make)
        x, y = self.sentences(24, 4)
        histories = [model.fit(x, y, 8, shuffle=False, verbose=0).history for model in (many, one)]
        histories_close(self, *histories)
        self.assert_same_weights(one, many)
        for expected, ours in zip(one.optimizer.variables, many.optimizer.variables, strict=True):
            self.assertAllClose(ours, expected, msg=expected.path, **CLOSE)

    @parameterized.parameters("sgd", "adagrad", "rmsprop")
    def test_optimizers_with_sparse_gradients(self, optimizer):
        """Those of an embedding, in which a word is there more than once."""

        def make():
            model = keras.Sequential([keras.Input((4,), dtype="int32"), keras.layers.Embedding(VOCABULARY, VOCABULARY)])
            return compiled(model, optimizer)

        one, many = self.pair(strategy_on(2), make)
        x, y = self.sentences(12, 4)
        histories = [model.fit(x, y, 6, epochs=2, shuffle=False, verbose=0).history for model in (many, one)]
        histories_close(self, *histories)
        self.assert_same_weights(one, many)

    def test_a_loss_scale_that_finds_its_size(self):
        """Steps with gradients that are not finite are left out, on the mesh the same ones."""

        def make():
            model = keras.Sequential([keras.Input((4,)), SparseMoE(4, 3, k=2, seed=1)])
            adam = keras.optimizers.Adam(0.01, epsilon=1e-3)
            model.compile(keras.optimizers.LossScaleOptimizer(adam, 1024.0, dynamic_growth_steps=5), "mse")
            return model

        one, many = self.pair(strategy_on(2), make)
        x = self.normal(64, 4)
        y = np.concatenate([np.full((16, 4), 1e38, "float32"), x[16:]])  # two batches that are too much for the scale
        for model in (many, one):
            model.fit(x, y, 8, shuffle=False, verbose=0)
            self.assertEqual(model.optimizer.inner_optimizer.iterations, 6)
            self.assertEqual(model.optimizer.dynamic_scale, 1024 / 2 / 2 * 2)
        self.assert_same_weights(one, many)

    def test_xla(self):
        """Against one device without XLA, which on one device draws other noise."""
        strategy = strategy_on(2)
        one = compiled(language_model(recurrent=False))
        with strategy.scope():
            many = compiled(language_model(recurrent=False), jit_compile=True)
        same_weights(self.rng, one, many)
        x, y = self.sentences(24, 4)
        histories = [model.fit(x, y, 8, shuffle=False, verbose=0).history for model in (many, one)]
        histories_close(self, *histories)
        self.assert_same_weights(one, many)

    def test_buckets_of_lengths(self):
        """A dataset whose batches differ in length and size, in any order; read by two epochs."""
        one, many = self.pair(strategy_on(4, 2), lambda: compiled(language_model(recurrent=False)))
        batches = [self.sentences(*shape) for shape in ((8, 3), (4, 5), (8, 3), (4, 5))]

        def dataset():
            def generate():
                yield from batches

            signature = (tf.TensorSpec([None, None], tf.int32),) * 2
            dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
            return dataset.apply(tf.data.experimental.assert_cardinality(len(batches)))

        histories = [model.fit(dataset(), epochs=2, shuffle=False, verbose=0).history for model in (many, one)]
        histories_close(self, *histories)
        self.assert_same_weights(one, many)

    def test_single_batches_and_class_weights(self):
        def make():
            model = keras.Sequential(
                [*language_model(recurrent=False).layers, keras.layers.GlobalAveragePooling1D()], name="classifier"
            )
            return compiled(model, keras.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"])

        one, many = self.pair(strategy_on(2), make)
        x, y = self.sentences(7, 4)  # does not divide evenly
        weights = {n: 0.1 * n for n in range(VOCABULARY)}
        for method in ("train_on_batch", "test_on_batch"):
            arguments = {"class_weight": weights} if method == "train_on_batch" else {}
            for data in ((x[:6], y[:6, 0]), (x, y[:, 0])):
                ours, expected = (getattr(m, method)(*data, return_dict=True, **arguments) for m in (many, one))
                self.assertEqual(set(ours), set(expected))
                for name, value in expected.items():
                    self.assertAllClose(ours[name], value, msg=name, **CLOSE)
        self.assertAllClose(many.predict_on_batch(x), one.predict_on_batch(x), **CLOSE)
        histories = [
            model.fit(x, y[:, 0], 7, class_weight=weights, shuffle=False, verbose=0).history for model in (many, one)
        ]
        histories_close(self, *histories)
        self.assert_same_weights(one, many)

    def test_one_output_without_sample_weights(self):
        """Keras passes None for its weights, from a generator an empty Optional."""

        def make():
            x = keras.Input((3,))
            outputs = {name: keras.layers.Dense(2, name=name)(x) for name in "ab"}
            model = keras.Model(x, outputs)
            model.compile(keras.optimizers.SGD(0.1), {"a": "mse", "b": "mse"})
            return model

        one, many = self.pair(strategy_on(2), make)
        x, y, weights = self.normal(8, 3), self.normal(8, 2), self.rng.random(8)

        def batch(part):
            return x[part], {"a": y[part], "b": -y[part]}, {"a": weights[part], "b": None}

        def fit(model):
            x, y, weights = batch(slice(None))
            arrays = model.fit(x, y, sample_weight=weights, batch_size=4, shuffle=False, verbose=0)
            batches = (batch(slice(start, start + 4)) for start in (0, 4))
            return arrays.history, model.fit(batches, steps_per_epoch=2, shuffle=False, verbose=0).history

        for ours, expected in zip(fit(many), fit(one), strict=True):
            histories_close(self, ours, expected)
        self.assert_same_weights(one, many)

    def test_mixed_precision(self):
        def make():
            model = language_model(recurrent=False, dtype="mixed_bfloat16")
            return compiled(model, keras.optimizers.Adam(0.01, epsilon=1e-3))

        one, many = self.pair(strategy_on(2), make)
        self.assertEqual(moe_of(many).experts.hidden_kernel.dtype, "float32")
        x, y = self.sentences(16, 4)
        histories = [model.fit(x, y, 8, shuffle=False, verbose=0).history for model in (many, one)]
        histories_close(self, *histories, rtol=0.02, atol=0.02)
        self.assert_same_weights(one, many, rtol=0.02, atol=0.03)

    def test_capacity(self):
        """Some tokens are dropped, as the log says; with room for all it is the layer without a capacity."""
        strategy = strategy_on(2)
        x, y = self.sentences(16, 4)
        for factor in (0.5, 100.0):
            one, many = self.pair(
                strategy, lambda factor=factor: compiled(language_model(recurrent=False, capacity_factor=factor))
            )
            ours = many.fit(x, y, 16, shuffle=False, verbose=0).history
            if factor > 1:
                histories_close(self, ours, one.fit(x, y, 16, shuffle=False, verbose=0).history)
                self.assertEqual(ours["moe/dropped_fraction"], [0.0])
            else:
                self.assertBetween(ours["moe/dropped_fraction"][0], 0.3, 0.8)


class OutsideTest(TestCase):
    """A variable made outside of the scope is a plain one: its numbers would be those of one device, unnoticed."""

    def assert_refused(self, model, method, *data):
        message = (
            rf"inside `with strategy.scope\(\)`. Received: '{model.name}' with variables made outside: \['outside/"
        )
        with self.assertRaisesRegex(ValueError, message):
            getattr(model, method)(*data, verbose=0)

    def test_metric(self):
        x, metric = self.normal(4, 3), keras.metrics.MeanSquaredError("outside")
        with strategy_on(2).scope():
            model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
            model.compile("sgd", "mse", metrics=[metric])
        for method in ("fit", "evaluate"):
            self.assert_refused(model, method, x, x)
        self.assertAllEqual(model.predict(x, verbose=0).shape, x.shape)  # which asks no metric

    @parameterized.parameters(contextlib.nullcontext, lambda: strategy_on(4).scope())
    def test_layer(self, scope):
        x, layer = self.normal(4, 3), keras.layers.Dense(3, name="outside")
        with scope():
            layer.build((None, 3))
        with strategy_on(2).scope():
            model = keras.Sequential([keras.Input((3,)), layer])
            model.compile("sgd", "mse")
        self.assert_refused(model, "fit", x, x)
        self.assert_refused(model, "predict", x)


class CallbacksTest(TestCase):
    def test_checkpoints_early_stopping_and_resuming(self):
        folder = self.get_temp_dir()
        x = self.rng.integers(1, VOCABULARY, (8, 4)).astype("int32")

        class Interrupt(keras.callbacks.Callback):
            epochs = []

            def on_epoch_begin(self, epoch, logs=None):
                self.epochs.append(epoch)
                if self.epochs == [0, 1, 2]:
                    raise KeyboardInterrupt

        def callbacks():
            return [
                keras.callbacks.BackupAndRestore(f"{folder}/backup"),
                keras.callbacks.ModelCheckpoint(f"{folder}/{{epoch}}.keras"),
                keras.callbacks.ModelCheckpoint(
                    f"{folder}/best.weights.h5", "loss", save_best_only=True, save_weights_only=True
                ),
                keras.callbacks.EarlyStopping("loss", min_delta=100.0, patience=3, restore_best_weights=True),
                Interrupt(),
            ]

        strategy = strategy_on(2)
        with strategy.scope():
            model = compiled(language_model(recurrent=False))
        with self.assertRaises(KeyboardInterrupt):
            model.fit(x, x, epochs=9, verbose=0, callbacks=callbacks())
        after_two = model.get_weights()
        with strategy.scope():
            model.set_weights([np.zeros_like(w) for w in after_two])
        starts = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: [self.assertAllClose(a, b) for a, b in zip(model.get_weights(), after_two)]  # noqa: B905
        )
        model.fit(x, x, epochs=9, verbose=0, callbacks=[*callbacks(), starts])
        # From where it was; and after the first epoch three more without an improvement of 100.
        self.assertEqual(Interrupt.epochs, [0, 1, 2, 2, 3, 4, 5])
        first = keras.models.load_model(f"{folder}/3.keras")  # the first epoch after the restart, which is the best
        for ours, expected in zip(model.get_weights(), first.get_weights(), strict=True):
            self.assertAllClose(ours, expected)
        last = keras.models.load_model(f"{folder}/6.keras")
        self.assertNotAllClose(last.get_weights()[0], first.get_weights()[0])
        fresh = language_model(recurrent=False)
        fresh.load_weights(f"{folder}/best.weights.h5")
        self.assertAllEqual(np.isfinite(fresh.predict(x, verbose=0)), np.ones((8, 4, VOCABULARY), bool))


class ProcessesTest(TestCase):
    """What one process of several does, with `barrier` and the number of the process put in their place."""

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.get_temp_dir(), self.id())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.calls = mock.Mock()
        self.enter_context(mock.patch.object(keras_methods, "barrier", self.calls.barrier))

    def model(self, scope=contextlib.nullcontext):
        with scope():
            return compiled(
                keras.Sequential([keras.Input((4,), dtype="int32"), keras.layers.Embedding(VOCABULARY, VOCABULARY)])
            )

    def fit(self, model, *callbacks):
        x = self.rng.integers(1, VOCABULARY, (4, 4)).astype("int32")
        model.fit(x, x, verbose=0, callbacks=list(callbacks))

    def as_second_of_two(self):
        self.enter_context(mock.patch.object(keras_methods.dtensor, "num_clients", return_value=2))
        self.enter_context(mock.patch.object(keras_methods.dtensor, "client_id", return_value=1))

    def test_models_elsewhere_wait_for_nobody(self):
        strategy = strategy_on(2)
        for scope, waits in ((contextlib.nullcontext, False), (strategy.scope, True)):
            self.fit(self.model(scope), keras.callbacks.BackupAndRestore(self.folder / "backup"))
            self.assertEqual(self.calls.barrier.called, waits)
            self.assertFalse((self.folder / "backup").exists())

    def test_nobody_waits_for_a_chief_that_failed(self):
        model = self.model(strategy_on(2).scope)
        with self.assertRaisesRegex(ValueError, "no_such_format"):
            model.export(self.folder / "exported", format="no_such_format")
        self.calls.barrier.assert_called_once()
        self.calls.reset_mock()
        backup = keras.callbacks.BackupAndRestore(self.folder / "backup")
        with (
            mock.patch("keras.src.utils.file_utils.rmtree", side_effect=OSError("busy")),
            self.assertRaisesRegex(OSError, "busy"),
        ):
            self.fit(model, backup)
        self.calls.barrier.assert_called_once()

    def test_folder_of_checkpoints_that_another_process_makes(self):
        """It is made between the moment that Keras looks for it and that it makes it."""
        model, file = self.model(strategy_on(2).scope), self.folder / "{epoch}" / "model.keras"
        exists = tf.io.gfile.exists
        with mock.patch("keras.src.utils.file_utils.exists") as found:

            def find(path):
                there = exists(path)
                (self.folder / "1").mkdir(exist_ok=True)
                return there

            found.side_effect = find
            self.fit(model, keras.callbacks.ModelCheckpoint(file))
        self.assertTrue((self.folder / "1" / "model.keras").exists())

    def test_backup_is_written_once(self):
        model = self.model(strategy_on(2).scope)
        self.as_second_of_two()
        with mock.patch.object(model, "save_weights", wraps=model.save_weights) as gathered:
            self.fit(model, keras.callbacks.BackupAndRestore(self.folder / "backup", delete_checkpoint=False))
        gathered.assert_called_once()
        self.assertFalse((self.folder / "backup").exists())
