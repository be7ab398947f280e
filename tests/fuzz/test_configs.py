"""Configs and `.keras` files with anything in them: an object, or an exception; and no program in them is run."""

import copy
import json
import traceback
import zipfile
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import tensorflow as tf

import tf_moe
from tests.bad_input.base import BadInput, moe_model
from tests.fuzz.base import examples
from tests.text.files import new_folder
from tf_moe.layers import LSTM, SampledSoftmax, SparseMoE

SOURCES = str(Path(tf_moe.__file__).parent)
OBJECTS = (
    lambda: SparseMoE(4, 3, k=2),
    lambda: SparseMoE((2, 2), 3, k=(1, 1), kernel_regularizer="l2", kernel_constraint="unit_norm", use_bias=True),
    lambda: SparseMoE(4, 3, k=2, gate=tf_moe.gates.StrictlyBalanced(4, 2)),
    lambda: SparseMoE(4, 3, k=1, gate=tf_moe.gates.Switch(4, z_loss_weight=0.1)),
    lambda: SparseMoE(4, 3, k=2, gate=tf_moe.gates.BiasBalanced(4, 2, num_gates=2)),
    lambda: SparseMoE(4, 3, k=2, gate=tf_moe.gates.Hash(4, 2)),
    lambda: SparseMoE(2, k=2, expert=lambda: keras.layers.Dense(3, "tanh")),
    lambda: LSTM(3, projection=2),
    lambda: SampledSoftmax(20, 5),
    lambda: tf_moe.optimizers.FactoredAdam(tf_moe.optimizers.WarmupInverseSqrt(0.1, 5)),
    lambda: tf_moe.models.Perplexity(),
)
ODD = (None, True, -1, 0, 3, 2.5, 1e400, float("nan"), 10**30, "", "\0", "relu", [], [1, 2], {}, {"a": 1})


def programs(file):
    """Configs of objects that are calls of other programs, each of which would make the file."""
    harm = f"open({str(file)!r}, 'w')"
    for module, name, config in (
        ("os", "system", f"touch {file}"),
        ("subprocess", "Popen", {"args": ["touch", str(file)]}),
        ("builtins", "exec", harm),
        ("keras.layers", "Lambda", {"function": {"class_name": "__lambda__", "config": {"code": harm}}}),
    ):
        yield {"module": module, "class_name": name, "config": config, "registered_name": name}
    yield {"module": "builtins", "class_name": "function", "config": "exec", "registered_name": "function"}
    yield {"class_name": "__lambda__", "config": {"code": harm, "defaults": None, "closure": None}}


def places(tree, path=()):
    """Where in nested dicts and lists anything stands, as paths."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield (*path, key)
        yield from places(value, (*path, key))


def mutate(tree, data, values):
    """A copy of a config of which one or two entries are dropped or are something else."""
    tree = copy.deepcopy(tree)
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from(list(places(tree))))
        parent = tree
        for key in path:
            parent = parent[key]
        if data.draw(st.booleans()):
            parent[last] = copy.deepcopy(data.draw(st.sampled_from(values)))
        elif len(tree) > 1 or path:
            del parent[last]
    return tree


def use(thing):
    """Do with it what it is for."""
    if isinstance(thing, SampledSoftmax):
        thing.build((None, 3))
    elif isinstance(thing, keras.layers.Layer):
        options = {"gate_id": [0, 1]} if getattr(getattr(thing, "gate", None), "takes_gate_id", False) else {}
        thing(np.ones((2, 3, 3), "float32"), **options)
    elif isinstance(thing, keras.optimizers.Optimizer):
        thing.apply([tf.ones([2, 3])], [keras.Variable(np.ones((2, 3)))])


class Harmless(BadInput):
    def setUp(self):
        super().setUp()
        self.directory = new_folder(self)
        self.ran = self.directory / "ran"
        self.values = [*ODD, *programs(self.ran)]

    def check_harmless(self, load):
        try:
            use(load())
        except Exception as error:
            raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
            if raised_in.startswith(SOURCES):  # Keras's own exceptions are of many kinds
                self.assertIsInstance(error, (TypeError, ValueError, tf.errors.InvalidArgumentError))
        self.assertFalse(self.ran.exists())


class ConfigTest(Harmless):
    @examples(100)
    @hypothesis.given(st.integers(0, len(OBJECTS) - 1), st.data())
    def test_any_config(self, number, data):
        if not hasattr(self, "configs"):
            self.configs = [json.loads(json.dumps(keras.saving.serialize_keras_object(make()))) for make in OBJECTS]
        config = mutate(self.configs[number], data, self.values)
        self.check_harmless(lambda: keras.saving.deserialize_keras_object(config))


class FileTest(Harmless):
    def setUp(self):
        super().setUp()
        self.file = self.directory / "model.keras"
        model = moe_model()
        model.compile(tf_moe.optimizers.FactoredAdam(), "mse")
        model.save(self.file)
        with zipfile.ZipFile(self.file) as saved:
            self.members = {name: saved.read(name) for name in saved.namelist()}

    def load(self, data):
        path = self.directory / "damaged.keras"
        path.write_bytes(data)
        return keras.saving.load_model(path)

    @examples(40)
    @hypothesis.given(st.data())
    def test_any_damage(self, data):
        content = bytearray(self.file.read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        end = data.draw(st.just(len(content)) | st.integers(0, len(content)))
        content = bytes(content[:end]) + data.draw(st.binary(max_size=30))
        self.check_harmless(lambda: self.load(content))

    @examples(40)
    @hypothesis.given(st.sampled_from(["config.json", "metadata.json"]), st.data())
    def test_any_config_in_a_file(self, member, data):
        changed = mutate(json.loads(self.members[member]), data, self.values)
        path = self.directory / "changed.keras"
        with zipfile.ZipFile(path, "w") as file:
            for name, content in {**self.members, member: json.dumps(changed)}.items():
                file.writestr(name, content)
        self.check_harmless(lambda: keras.saving.load_model(path))
