"""Training in two processes: the numbers of one device, files of one device, no whole bank in memory, and restarts."""

import json
import pathlib

import keras
import numpy as np
import tensorflow as tf

import tf_moe
from tests.base import TestCase
from tests.processes import run_python, write_script
from tf_moe.distribute import launch

VOCABULARY, EXPERTS = 30, 8

# What the processes and the test itself run. The gate's noise and all initial values follow from seeds.
MODEL = f"""
import keras
import numpy as np
import tf_moe

def build():
    uniform = lambda seed: keras.initializers.RandomUniform(-0.5, 0.5, seed=seed)
    gate = tf_moe.gates.NoisyTopK({EXPERTS}, 2, kernel_initializer=uniform(3), seed=1)
    model = keras.Sequential([
        keras.layers.Input((None,), dtype="int32"),
        keras.layers.Embedding({VOCABULARY}, 8, mask_zero=True, embeddings_initializer=uniform(4)),
        tf_moe.layers.LSTM(8, return_sequences=True, kernel_initializer=uniform(5), recurrent_initializer=uniform(6)),
        tf_moe.layers.SparseMoE({EXPERTS}, 16, k=2, gate=gate, kernel_initializer=uniform(7), name="moe"),
        keras.layers.Dense({VOCABULARY}, kernel_initializer=uniform(8)),
    ])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
    return model

def data(examples):
    x = np.random.RandomState(0).randint(0, {VOCABULARY}, (examples, 6))
    return x, np.roll(x, -1, 1)

class Losses(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.losses = []
    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))
"""

TRAIN = """
import json, sys
import tensorflow as tf
keras.utils.set_random_seed(7)
strategy = tf_moe.distribute.ExpertParallelStrategy()
drawn = np.random.random()
with strategy.scope():
    model = build()
x, y = data(22)  # batches of 8, 8 and 6: the last divides over no four devices
folder, losses = sys.argv[1], Losses()
checkpoint = keras.callbacks.ModelCheckpoint(folder + "/{epoch}/model.weights.h5", save_weights_only=True)
backup = keras.callbacks.BackupAndRestore(folder + "/backup")
model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[losses, checkpoint, backup])
result = {
    "devices": strategy.mesh.size,
    "drawn": drawn,
    "losses": losses.losses,
    "evaluated": model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True),
    "predicted": model.predict(x, batch_size=8, verbose=0).tolist(),
    "layout": model.get_layer("moe").experts.hidden_kernel.value.layout.sharding_specs,
}
# Its own half of two batches of 8.
own = [a[:16].reshape(2, 2, 4, 6)[:, int(not strategy.is_chief)].reshape(8, 6) for a in (x, y)]
own = tf.data.Dataset.from_tensor_slices(tuple(own)).batch(4)
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
result["evaluated_own"] = model.evaluate(own.with_options(options), verbose=0, return_dict=True)
model.save(folder + "/model.keras")
model.export(folder + "/exported", verbose=False)
tf_moe.distribute.save_sharded(folder + "/sharded", model)
json.dump(result, open(f"{folder}/{int(strategy.is_chief)}.json", "w"))
"""

MEMORY = """
import json, sys, threading, time
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
peak = 0
def watch():
    global peak
    while True:
        peak = max(peak, resident())
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
strategy = tf_moe.distribute.ExpertParallelStrategy()
start, peak = resident(), 0
with strategy.scope():
    layers = [tf_moe.layers.SparseMoE(32, 2048, k=2) for _ in range(4)]
    model = keras.Sequential([keras.layers.Input((512,)), *layers])
    model.compile("sgd", "mse")
    first = keras.Sequential([keras.layers.Input((512,)), layers[0]])
building = peak - start
bank = sum(w.shape.num_elements() * 4 for layer in model.layers for w in layer.experts.weights) / 2**20
start, peak = resident(), 0
tf_moe.distribute.save_sharded(sys.argv[1] + "/bank", first)
saving = peak - start
result = {"bank": bank, "building": building, "saving": saving}
json.dump(result, open(f"{sys.argv[1]}/{int(strategy.is_chief)}.json", "w"))
"""

KILLED = """
import os, signal, sys
strategy = tf_moe.distribute.ExpertParallelStrategy()
with strategy.scope():
    model = build()
class Kill(keras.callbacks.Callback):
    batches = 0
    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.batches == int(sys.argv[2]) and not strategy.is_chief:
            os.kill(os.getpid(), signal.SIGKILL)
x, y = data(32)
losses, resume = Losses(), tf_moe.distribute.Resume(sys.argv[1] + "/checkpoints", save_freq=3)
try:
    model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=[resume, losses, Kill()])
finally:
    if strategy.is_chief:
        print("LOSSES", losses.losses, flush=True)
"""


class ProcessesTest(TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.get_temp_dir(), self.id())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.here = {}
        exec(MODEL, self.here)

    def run_in_two(self, script, *arguments, devices, code=0):
        # By its path: the launcher itself needs nothing of the package, which takes seconds to import.
        command = [launch.__file__, "--processes", 2, "--devices-per-process", devices]
        done = run_python(*command, write_script(self, MODEL + script), self.folder, *arguments, code=code)
        return done.stdout + done.stderr

    def train_here(self, examples, epochs):
        """The same on one device."""
        model, losses = self.here["build"](), self.here["Losses"]()
        model.run_eagerly = True  # to be traced takes longer than the steps
        x, y = self.here["data"](examples)
        model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[losses])
        return model, x, y, losses.losses

    def test_numbers_and_files_of_one_device(self):
        self.run_in_two(TRAIN, devices=2)
        keras.utils.set_random_seed(7)
        drawn = np.random.random()
        model, x, y, losses = self.train_here(22, 2)
        expected = model(x)
        evaluated = model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
        together = model.evaluate(x[:16], y[:16], batch_size=8, verbose=0, return_dict=True)
        for process in (0, 1):
            found = json.loads((self.folder / f"{process}.json").read_text())
            self.assertEqual(found["devices"], 4)
            self.assertEqual(found["drawn"], drawn)  # the script's seed is kept
            self.assertEqual(found["layout"], ["expert", "unsharded", "unsharded"])
            self.assertAllClose(found["losses"], losses, rtol=1e-5)
            self.assertAllClose(found["evaluated"], evaluated)
            self.assertAllClose(found["predicted"], expected, atol=1e-4)
            self.assertAllClose(found["evaluated_own"], together)
        self.assertTrue((self.folder / "1" / "model.weights.h5").exists())
        self.assertFalse((self.folder / "backup").exists())
        checkpoint = self.here["build"]()
        checkpoint.optimizer.build(checkpoint.trainable_variables)  # or Keras warns of its state in the file
        checkpoint.load_weights(self.folder / "2" / "model.weights.h5")
        self.assertAllClose(checkpoint(x), expected, atol=1e-4)
        plain = keras.models.load_model(self.folder / "model.keras")
        self.assertAllClose(plain(x), expected, atol=1e-4)
        exported = tf.saved_model.load(str(self.folder / "exported"))
        served = exported.serve(tf.constant(x[:3, :4], tf.int32))
        self.assertAllClose(served, model(x[:3, :4]), atol=1e-4)
        restored = self.here["build"]()
        tf_moe.distribute.restore_sharded(self.folder / "sharded", restored)
        self.assertAllClose(restored(x), expected, atol=1e-4)
        self.assertEqual(int(restored.optimizer.iterations), 6)

    def test_no_process_holds_the_bank(self):
        self.run_in_two(MEMORY, devices=1)
        for process in (0, 1):
            found = json.loads((self.folder / f"{process}.json").read_text())
            self.assertEqual(found["bank"], 1024)
            # A process's part is 512 MiB, to which come the pieces of one weight while it is made.
            self.assertLess(found["building"], 850)
            self.assertLess(found["saving"], 100)  # a part of the one layer that is saved has 128 MiB

    def test_killed_and_started_again(self):
        """A process is killed in the second epoch; the second start goes on in the middle of it."""
        *_, losses = self.train_here(32, 3)
        output = self.run_in_two(KILLED, 7, devices=1, code=137)
        self.assertIn("process 1 ended by SIGKILL", output)
        output = self.run_in_two(KILLED, 0, devices=1)
        line = next(line for line in output.splitlines() if "LOSSES" in line)
        found = json.loads(line.split("LOSSES", 1)[1])
        # The checkpoint was written after batch 3 of epoch 1: what is left is batch 4 of it, and epoch 2.
        self.assertLen(found, 5)
        self.assertAllClose(found, np.array(losses)[-5:], rtol=1e-5)
        self.assertFalse((self.folder / "checkpoints").exists())
