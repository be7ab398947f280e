import glob
import warnings

import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.analysis import DeadExperts, ExpertMonitor, Label
from tf_moe.analysis.monitor import _picture
from tf_moe.layers import SparseMoE


def events(directory):
    """Tag -> list of (step, plugin, value), as they stand in the files."""
    found = {}
    for file in sorted(glob.glob(f"{directory}/*")):
        for record in tf.data.TFRecordDataset(file):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                plugin = value.metadata.plugin_data.plugin_name
                found.setdefault(value.tag, []).append((event.step, plugin, tf.make_ndarray(value.tensor)))
    return found


class ExpertMonitorTest(TestCase):
    def model(self):
        layer = SparseMoE(4, 3, k=2, seed=1, name="moe")
        layers = [keras.layers.Embedding(9, 5, mask_zero=True), layer, keras.layers.Dense(9)]
        model = keras.Sequential([keras.Input((6,), dtype="int32"), *layers])
        layer.gate.kernel.assign(self.normal(5, 4))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.1), loss)
        return model

    def test_history_and_events(self):
        """Looks every 3 steps, of which an epoch has 4, and at the end of every epoch."""
        directory = self.get_temp_dir()
        model = self.model()
        x = self.rng.integers(0, 9, (16, 6))
        batches = [(x[:8], x[:8]), (x[8:], x[8:])]
        labels = {"odd": Label(lambda ids: ids % 2, ("even", "o|dd"))}
        often = ExpertMonitor(batches, directory, every=3, labels=labels)
        epochs = ExpertMonitor(batches)
        model.optimizer.build(model.trainable_variables)
        state = model.variables + model.optimizer.variables
        start = [variable.numpy() for variable in state]
        embedding, moe = model.layers[:2]
        expected = []
        measure = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: expected.append(moe.route(embedding(x), mask=x != 0).load.numpy())
        )
        fit = {"batch_size": 4, "epochs": 3, "shuffle": False, "verbose": 0}
        watched = model.fit(x, x, callbacks=[often, epochs, measure], **fit)
        self.assertEqual((often.steps, epochs.steps), ([3, 6, 9, 12], [4, 8, 12]))
        loads = np.stack(expected)
        self.assertAllClose(epochs.load("moe"), loads / loads.sum(axis=1, keepdims=True))
        self.assertAllClose(often.load("moe")[-1], epochs.load("moe")[-1])
        rows = often.table()
        self.assertEqual([(row["step"], row["layer"]) for row in rows], [(n, "moe") for n in often.steps])
        self.assertEqual(rows[0]["load_cv"], often.usage["moe"][0].load_cv)
        self.assertEqual(rows[-1]["specialisation/odd"], often.specialisation["moe"]["odd"][-1])
        self.check_events(events(directory), often)

        # The same again without anybody looking: the same noise, the same weights, the same log.
        end = [variable.numpy() for variable in model.variables]
        for variable, value in zip(state, start, strict=True):
            variable.assign(value)
        alone = model.fit(x, x, **fit)
        for variable, value in zip(model.variables, end, strict=True):
            self.assertAllClose(variable.numpy(), value, rtol=1e-4, atol=1e-5)
        self.assertAllClose(watched.history, alone.history, rtol=1e-4)

    def check_events(self, found, monitor):
        usage = monitor.usage["moe"]
        figures = [(step, "scalars", one.figures()["load_cv"]) for step, one in zip(monitor.steps, usage, strict=True)]
        self.assertEqual([row[:2] for row in found["moe/load_cv"]], [row[:2] for row in figures])
        self.assertAllClose([row[2] for row in found["moe/load_cv"]], [row[2] for row in figures])
        shares = [value for _, _, value in found["moe/specialisation/odd"]]
        self.assertAllClose(shares, monitor.specialisation["moe"]["odd"])
        step, plugin, bins = found["moe/load_over_mean"][-1]
        self.assertEqual((step, plugin, bins.shape), (12, "histograms", (30, 3)))
        load = usage[-1].load / usage[-1].load.mean()
        for left, right, count in bins[:-1]:
            self.assertEqual(count, ((left <= load) & (load < right)).sum())
        self.assertEqual((bins[0, 0], bins[-1, 1], bins[:, 2].sum()), (load.min(), load.max(), 4))
        _, plugin, (width, height, png) = found["moe/load_over_time"][-1]
        picture = tf.io.decode_png(png).numpy()
        self.assertEqual((plugin, int(width), int(height)), ("images", picture.shape[1], picture.shape[0]))
        self.assertAllEqual(picture[3::6, 64::128, 0], self.shades(monitor.load("moe") * 4))
        _, plugin, text = found["moe/experts"][-1]
        lines = text.item().decode().splitlines()
        self.assertEqual((plugin, lines[0]), ("text", "| expert | load | odd |"))
        self.assertLen(lines, 2 + 4)
        self.assertStartsWith(lines[2], f"| {np.argmax(usage[-1].load)} | ")
        self.assertNotRegex("".join(lines), r"[^\\]\|dd")

    def test_recurrent_layers_train_as_without(self):
        """An LSTM draws dropout masks at evaluation too, and a stateful one keeps its last state."""
        layers = [
            keras.layers.Embedding(9, 5),
            keras.layers.LSTM(5, return_sequences=True, dropout=0.2, seed=1),
            keras.layers.LSTM(5, return_sequences=True, stateful=True),
            SparseMoE(4, 3, k=2, seed=1, name="moe"),
            keras.layers.Dense(9),
        ]
        model = keras.Sequential([keras.Input(batch_shape=(4, 6), dtype="int32"), *layers])
        model.compile(keras.optimizers.SGD(1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        x = self.rng.integers(0, 9, (8, 6))
        fit = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0}
        start, ends = [variable.numpy() for variable in model.variables], []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of dead experts
            for callbacks in ([], [ExpertMonitor([x[:4]], every=1), DeadExperts([x[:4]])]):
                for variable, value in zip(model.variables, start, strict=True):
                    variable.assign(value)
                layers[2].reset_states()
                model.fit(x, x, callbacks=callbacks, **fit)
                ends.append([variable.numpy() for variable in model.variables])
        for alone, watched in zip(*ends, strict=True):
            self.assertAllClose(alone, watched, rtol=1e-4, atol=1e-5)

    def test_several_steps_in_one_call(self):
        model = self.model()
        x = self.rng.integers(1, 9, (16, 6))
        model.compile("sgd", model.loss, steps_per_execution=2)
        monitor, steps = ExpertMonitor([x], every=3), []
        monitor._look = lambda: steps.append(int(model.optimizer.iterations))
        model.fit(x, x, batch_size=4, epochs=2, verbose=0, callbacks=[monitor])
        self.assertEqual(steps, [4, 6])  # of calls that end at 2, 4, 6, 8

    def test_picture_of_many_looks(self):
        load = self.rng.dirichlet(np.ones(3), 1000)
        picture = _picture(load)
        self.assertEqual(picture.shape, (6 * 128, 510, 1))
        self.assertAllEqual(picture[[0, -1], ::170, 0], self.shades(3 * load[[0, -1]]))

    def shades(self, ratios):
        """White at 1/8, black at 8, in steps of equal ratio."""
        with np.errstate(divide="ignore"):
            return np.round(np.interp(np.log2(ratios), [-3, 3], [255, 0]))

    def test_another_model(self):
        x = self.normal(8, 4)
        monitor = ExpertMonitor([x])
        for name in ("one", "other"):
            model = keras.Sequential([keras.Input((4,)), SparseMoE(4, 5, k=2, name=name)])
            model.compile("sgd", "mse")
            for _ in range(2):  # a history of both
                model.fit(x, x, batch_size=4, verbose=0, callbacks=[monitor])
            self.assertEqual(monitor.steps, [2, 4])
            self.assertEqual([row["layer"] for row in monitor.table()], [name] * 2)

    def test_wrong(self):
        for every in (0, 1.5, "step", None):
            with self.assertRaisesRegex(ValueError, f'every must be a positive integer, or "epoch".*every={every!r}'):
                ExpertMonitor([], every=every)
        with self.assertRaisesRegex(ValueError, "gone through at every look"):
            ExpertMonitor(x for x in [])
        with self.assertRaisesRegex(TypeError, "'mine': 3"):
            ExpertMonitor([], labels={"mine": 3})
        with self.assertRaisesRegex(ValueError, r"of \[\]. Received: layer='moe'"):
            ExpertMonitor([]).load("moe")
