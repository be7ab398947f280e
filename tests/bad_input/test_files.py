import json
import zipfile

import keras
from absl.testing import parameterized

from tests.bad_input.base import BadInput, moe_model, zeros
from tests.text.files import new_folder


class SavedModelTest(BadInput):
    """`.keras` files that are damaged, or that were written to do harm."""

    def setUp(self):
        super().setUp()
        self.directory = new_folder(self)
        self.file = self.directory / "model.keras"
        moe_model().save(self.file)

    def load(self, data):
        file = self.directory / "damaged.keras"
        file.write_bytes(data)
        return keras.saving.load_model(file)

    def load_with(self, **changes):
        """The saved model, with another config of its SparseMoE."""
        with zipfile.ZipFile(self.file) as saved:
            members = {name: saved.read(name) for name in saved.namelist()}
        config = json.loads(members["config.json"])
        config["config"]["layers"][1]["config"].update(changes)
        file = self.directory / "changed.keras"
        with zipfile.ZipFile(file, "w") as changed:
            for name, data in {**members, "config.json": json.dumps(config)}.items():
                changed.writestr(name, data)
        return keras.saving.load_model(file)

    def test_unchanged(self):
        self.assertEqual(self.load_with().count_params(), moe_model().count_params())

    def test_missing(self):
        self.check(lambda: keras.saving.load_model(self.directory / "no.keras"), ValueError, "no.keras")

    def test_truncated(self):
        data = self.file.read_bytes()
        for size in (0, 1, 30, len(data) // 2, len(data) - 1):
            with self.subTest(size=size):
                self.check(lambda size=size: self.load(data[:size]), ValueError, "damaged.keras")

    def test_random(self):
        self.check(lambda: self.load(self.rng.bytes(2000)), ValueError, "damaged.keras")

    def test_a_member_with_wrong_bytes(self):
        data = bytearray(self.file.read_bytes())
        with zipfile.ZipFile(self.file) as saved:
            starts = {info.filename: info.header_offset for info in saved.infolist()}
        for name in ("config.json", "model.weights.h5"):
            wrong = data.copy()
            wrong[starts[name] + 500] ^= 0xFF
            with self.subTest(name=name):
                self.check(lambda wrong=wrong: self.load(wrong), zipfile.BadZipFile, name)

    @parameterized.named_parameters(
        ("unknown_gate", {"gate": "top_k"}, ValueError, "gate='top_k'"),
        ("k_above", {"k": 9}, ValueError, "k=9, num_experts=8"),
        ("hidden_text", {"expert_hidden": "3"}, ValueError, "expert_hidden='3'"),
        ("capacity_negative", {"capacity_factor": -1.0}, ValueError, "capacity_factor=-1.0"),
        ("other_weights", {"expert_hidden": 5}, ValueError, r"variable.shape=\(8, 4, 5\), Received: .*\(8, 4, 3\)"),
        ("unknown_key", {"colour": 1}, ValueError, "'colour': 1"),
    )
    def test_configs(self, changes, error, pattern):
        self.check(lambda: self.load_with(**changes), error, pattern)

    @parameterized.parameters("gate", "activation", "kernel_initializer", "kernel_regularizer", "expert")
    def test_a_config_that_names_a_program_does_not_run_it(self, argument):
        ran = self.directory / "ran"
        for module, name, config in (
            ("os", "system", f"touch {ran}"),
            ("subprocess", "Popen", {"args": ["touch", str(ran)]}),
        ):
            program = {"module": module, "class_name": name, "config": config, "registered_name": name}
            with self.subTest(name=name):
                changes = {argument: [program] * 8 if argument == "expert" else program}
                self.check(lambda changes=changes: self.load_with(**changes), (TypeError, ValueError), name)
                self.assertFalse(ran.exists())

    def test_an_expert_that_is_code_runs_only_when_the_user_says_so(self):
        ran = self.directory / "ran"
        path = str(ran)  # which Keras can save with the code

        def expert():
            return keras.layers.Lambda(lambda x: (open(path, "w").close(), x)[1])

        moe_model(expert=expert).save(self.file)
        ran.unlink(missing_ok=True)  # building the model runs it
        self.check(lambda: keras.saving.load_model(self.file), ValueError, "`Lambda` layer.*safe_mode=False")
        self.assertFalse(ran.exists())
        model = keras.saving.load_model(self.file, safe_mode=False)
        model(zeros(2, 4))
        self.assertTrue(ran.exists())
