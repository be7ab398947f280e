import contextlib
import io
from pathlib import Path

import keras
import tensorflow as tf
from absl.testing import parameterized

from tests.bad_input.base import BadInput, dense_model, zeros
from tests.text.files import new_folder
from tf_moe import distribute
from tf_moe.distribute import ExpertParallelStrategy, Resume, launch, restore_sharded, save_sharded


def on(devices=("CPU:0", "CPU:1"), mesh_shape=None, **arguments):
    return ExpertParallelStrategy(devices, mesh_shape, **arguments)


def launched(*arguments):
    """Runs the command line; what it says of its arguments is the exception's message."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            launch.main(arguments)
    except SystemExit as exit_:
        raise SystemExit(said.getvalue()) from exit_


STATE = '{"checkpoint": "epoch-1-batch-0", "epoch": 1, "batch": 0, "steps": 2, "seed": 2}'
PAIR = zeros(4, 4), zeros(4, 3)
SOME = tf.data.Dataset.from_tensors(PAIR).filter(lambda *_: True)


class DistributeTest(BadInput):
    @parameterized.named_parameters(
        ("mesh_too_large", lambda: on(mesh_shape={"expert": 3}), ValueError, r"r \* e = 2.*mesh_shape={'expert': 3}"),
        ("mesh_axis", lambda: on(mesh_shape={"batch": 2}), ValueError, "mesh_shape={'batch': 2}"),
        ("mesh_text", lambda: on(mesh_shape={"expert": "2"}), ValueError, "mesh_shape={'expert': '2'}"),
        ("mesh_true", lambda: on(["CPU:0"], {"expert": True}), ValueError, "mesh_shape={'expert': True}"),
        ("mesh_negative", lambda: on(mesh_shape={"expert": -2, "replica": -1}), ValueError, "'expert': -2"),
        ("mesh_pair", lambda: on(mesh_shape=(1, 2)), ValueError, r"mesh_shape=\(1, 2\)"),
        ("mesh_number", lambda: on(mesh_shape=2), ValueError, "mesh_shape=2"),
        ("one_name", lambda: on("CPU:0"), ValueError, r"list of names.*devices='CPU:0'"),
        ("no_devices", lambda: on([]), ValueError, r"one at least; leave it out for all. Received: devices=\[\]"),
        ("number_of_devices", lambda: on(4), ValueError, "devices=4"),
        ("numbers_of_devices", lambda: on([0, 1]), ValueError, "such as .CPU:0.*Received: 0"),
        ("no_such_device", lambda: on(["CPU:99"]), ValueError, r"CPU:7. Received: devices=\['CPU:99'\]"),
        ("no_such_type", lambda: on(["ABACUS:0"]), ValueError, "'ABACUS'"),
        ("same_device", lambda: on(["CPU:0", "CPU:0"]), ValueError, r"different ones.*\['CPU:0', 'CPU:0'\]"),
        ("mixed_devices", lambda: on(["CPU:0", "GPU:0"]), ValueError, r"\['CPU:0', 'GPU:0'\]"),
        ("resolver", lambda: on(cluster_resolver="a:1"), TypeError, "cluster_resolver='a:1'. Leave it out"),
        ("address", lambda: distribute.Cluster(0, ("a",)), ValueError, "'host:port'. Received: 'a'"),
        ("addresses_text", lambda: distribute.Cluster(0, "a:1"), ValueError, "tuple of texts .*addresses='a:1'"),
        ("addresses_number", lambda: distribute.Cluster(0, 2), ValueError, "addresses=2"),
        ("process_text", lambda: distribute.Cluster("0", ("a:1",)), ValueError, "process_index='0'"),
        ("process_beyond", lambda: distribute.Cluster(1, ("a:1",)), ValueError, "process 1 of"),
        ("environment", lambda: launch.process_environment(3, ["a:1"]), ValueError, r"index=3, \['a:1'\]"),
        ("save_freq_zero", lambda: Resume("a", 0), ValueError, 'positive integer of batches, or "epoch".*save_freq=0'),
        ("save_freq_word", lambda: Resume("a", "batch"), ValueError, "save_freq='batch'"),
        ("save_freq_true", lambda: Resume("a", True), ValueError, "save_freq=True"),
        ("save_freq_fraction", lambda: Resume("a", 1.5), ValueError, "save_freq=1.5"),
        ("save_before_exit_word", lambda: Resume("a", save_before_exit="no"), ValueError, "save_before_exit='no'"),
        ("delete_word", lambda: Resume("a", delete_checkpoint="no"), ValueError, "delete_checkpoint='no'"),
        ("resume_number", lambda: Resume(3), TypeError, "not int"),
        ("save_nothing", lambda: save_sharded("a", None), TypeError, "model=None"),
        ("save_to_a_number", lambda: save_sharded(3, dense_model()), TypeError, "not int"),
        ("restore_missing", lambda: restore_sharded("/no/such", dense_model()), FileNotFoundError, "'/no/such'"),
        (
            "save_unbuilt",
            lambda: save_sharded("a", keras.Sequential([keras.layers.Dense(3)], name="mine")),
            ValueError,
            "'mine', which is not",
        ),
        (
            "restore_unbuilt",
            lambda: restore_sharded("a", keras.Sequential([keras.layers.Dense(3)], name="mine")),
            ValueError,
            "'mine', which is not",
        ),
        ("no_script", lambda: launched(), SystemExit, "required: SCRIPT"),
        ("no_process", lambda: launched("--processes", "0", "a.py"), SystemExit, "--processes.*integer. Received: '0'"),
        ("processes_word", lambda: launched("--processes", "two", "a.py"), SystemExit, "Received: 'two'"),
        ("devices_fraction", lambda: launched("--devices-per-process", "1.5", "a"), SystemExit, "Received: '1.5'"),
        ("grace_negative", lambda: launched("--grace", "-1", "a.py"), SystemExit, "--grace.*0 or more.*'-1'"),
        ("grace_nan", lambda: launched("--grace", "nan", "a.py"), SystemExit, "'nan'"),
        ("grace_word", lambda: launched("--grace", "long", "a.py"), SystemExit, "'long'"),
        ("unknown_option", lambda: launched("--workers", "2", "a.py"), SystemExit, "--workers"),
    )
    def test_calls(self, call, error, pattern):
        self.check(call, error, pattern)

    def checkpoint(self):
        path = str(new_folder(self) / "checkpoint")
        save_sharded(path, dense_model())
        return path

    def test_a_checkpoint_of_another_model(self):
        path = self.checkpoint()
        message = r"another model. Received: .*'model/0/kernel' has shape \[4, 3\].* \[4, 5\]"
        self.check(lambda: restore_sharded(path, dense_model(5)), ValueError, message)

    @parameterized.parameters(".index", ".data-00000-of-00001")
    def test_a_truncated_checkpoint(self, suffix):
        path = self.checkpoint()
        file = Path(path + suffix)
        file.write_bytes(file.read_bytes()[:20])
        self.check(lambda: restore_sharded(path, dense_model()), ValueError, f"'{path}' is damaged")

    def test_a_checkpoint_without_its_data(self):
        path = self.checkpoint()
        Path(path + ".data-00000-of-00001").unlink()
        self.check(lambda: restore_sharded(path, dense_model()), ValueError, f"'{path}' is damaged, or a part")

    def resume(self, model, state=None, data=None, save_freq="epoch", at_once=1, directory=None):
        directory = directory or new_folder(self)
        if state is not None:
            (directory / "state.json").write_text(state)
        model.compile("sgd", "mse", steps_per_execution=at_once)
        data = {"x": zeros(8, 4), "y": zeros(8, 3), "batch_size": 4} if data is None else data
        shuffle = "y" in data  # which Keras does with arrays only
        model.fit(**data, epochs=2, shuffle=shuffle, verbose=0, callbacks=[Resume(directory, save_freq)])

    def test_resume_under_another_strategy(self):
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            model = dense_model()
        self.check(lambda: self.resume(model), ValueError, "Received: 'sequential.*', of MirroredStrategy.*BackupAnd")

    @parameterized.parameters("{", "3", '{"epoch": 1}', STATE.replace("1", '"1"'), STATE.replace("2", "2.5"))
    def test_resume_from_a_damaged_state(self, state):
        self.check(lambda: self.resume(dense_model(), state), ValueError, f"is damaged.*Received: '{state[:60]}")

    @parameterized.named_parameters(
        ("gone", STATE, {}, FileNotFoundError, "epoch-1-batch-0' *"),
        ("epochs", STATE.replace("1", "3"), {}, ValueError, "is of epoch 3, batch 0. Received: epochs=2"),
        (
            "last_epoch",
            STATE.replace('1, "batch": 0', '2, "batch": 1'),
            {},
            ValueError,
            "of epoch 2, batch 1. Received",
        ),
        ("steps", STATE.replace('"steps": 2', '"steps": 5'), {}, ValueError, "of a training with 5 steps.*data with 2"),
        ("at_once", STATE.replace('0, "st', '1, "st'), {"at_once": 2}, ValueError, "after 1 batches.*execution=2"),
    )
    def test_resume_from_another_training(self, state, arguments, error, pattern):
        keras.utils.set_random_seed(2)
        self.check(lambda: self.resume(dense_model(), state, **arguments), error, pattern)

    @parameterized.parameters(2, 4)
    def test_resume_of_another_model(self, width):
        """One whose variables have other shapes, and one with further variables."""
        directory, model = new_folder(self), dense_model(3 if width == 4 else width)
        if width == 4:
            model.add(keras.layers.Dense(width))
        model.compile("sgd", "mse")
        model.optimizer.build(model.trainable_variables)
        save_sharded(directory / "epoch-1-batch-0", model)
        call = lambda: self.resume(dense_model(), STATE, directory=directory)  # noqa: E731
        self.check(call, ValueError, "of another model. Received: '.*epoch-1-batch-0'")

    @parameterized.named_parameters(
        ("generator", {"x": ((zeros(4, 4), zeros(4, 3)) for _ in range(9))}, "a tf.data.Dataset.*generator object"),
        ("part", {"x": tf.data.Dataset.from_tensors(PAIR).repeat(3), "steps_per_epoch": 2}, "epoch=2.*of 3 batches"),
        ("unknown", {"x": SOME, "steps_per_epoch": 2}, "steps_per_epoch=2, and data of unknown length"),
        ("arrays", {"x": PAIR[0], "y": PAIR[1], "steps_per_epoch": 2}, "steps_per_epoch=2, and data of unknown"),
    )
    def test_resume_with_data(self, data, pattern):
        self.check(lambda: self.resume(dense_model(), data=data), ValueError, pattern)

    def test_resume_without_a_seed(self):
        tf.random.set_seed(None)
        self.check(lambda: self.resume(dense_model(), save_freq=1), ValueError, "Received: shuffle=True.*_seed")

    def test_resume_with_fewer_batches(self):
        """Found when the batches that were seen are read."""
        keras.utils.set_random_seed(2)
        state = STATE.replace('1, "batch": 0', '0, "batch": 2').replace('"steps": 2', '"steps": null')
        data = {"x": tf.data.Dataset.from_tensors(PAIR).filter(lambda *_: False)}
        self.check(lambda: self.resume(dense_model(), state, data=data), ValueError, "The data ended before the place")
