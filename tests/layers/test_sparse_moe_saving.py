"""The layer in files, configs and copies: what is shared, frozen, or built where."""

import inspect
import json
from pathlib import Path

import keras
import numpy as np
from absl.testing import parameterized

import tf_moe
from tests.base import TestCase
from tests.layers.test_sparse_moe_keras import every_kind, recurrent_model
from tf_moe.layers import SparseMoE


class SavingTest(TestCase):
    @every_kind
    def test_config_round_trip(self, arguments):
        layer = SparseMoE(importance_weight=0.2, load_weight=0.3, output_activation="sigmoid", seed=3, **arguments)
        config = json.loads(json.dumps(layer.get_config()))  # as it comes back from a file
        again = SparseMoE.from_config(config)
        self.assertEqual(json.dumps(again.get_config()), json.dumps(config))
        x = self.normal(7, 4)
        layer(x), again(x)
        again.set_weights(layer.get_weights())
        self.assertAllClose(layer(x), again(x))

    def test_config_holds_every_argument(self):
        arguments = {
            "num_experts": [3, 2], "expert_hidden": 5, "k": [2, 1], "importance_weight": 0.2, "load_weight": 0.3,
            "capacity_factor": 1.5, "activation": "gelu", "output_activation": "tanh", "use_bias": True,
            "recompute": True, "seed": 3, "drop_by": "weight", "expert_dropout": 0.25, "shared_expert_hidden": 7,
            "name": "mine", "trainable": False,
        }  # fmt: skip
        of_kernels = {
            "kernel_initializer": keras.initializers.HeNormal(seed=3),
            "kernel_regularizer": keras.regularizers.L2(0.25),
            "kernel_constraint": keras.constraints.MaxNorm(2.0),
        }
        config = json.loads(json.dumps(SparseMoE(**arguments, **of_kernels).get_config()))
        self.assertEqual({name: config[name] for name in arguments}, arguments)
        for name, value in of_kernels.items():
            self.assertEqual(config[name], json.loads(json.dumps(keras.saving.serialize_keras_object(value))))
        self.assertEmpty(set(inspect.signature(SparseMoE.__init__).parameters) - {"self", "kwargs"} - set(config))

    def test_config_holds_what_was_set_on_a_named_gate(self):
        layer = SparseMoE(4, 5, k=2)
        self.assertEqual(layer.get_config()["gate"], "noisy_top_k")
        layer.gate.trainable = False
        self.assertEqual(layer.get_config()["gate"], "noisy_top_k")
        layer.gate.z_loss_weight = 0.5
        self.assertEqual(SparseMoE.from_config(layer.get_config()).gate.z_loss_weight, 0.5)

    def test_what_was_set_later_is_loaded(self):
        layer = SparseMoE(4, 5, k=2, capacity_factor=0.5)
        model = keras.Sequential([keras.Input((3,)), layer])
        model.set_weights([self.normal(*w.shape) for w in model.get_weights()])
        layer.drop_by, layer.importance_weight, layer.load_weight = "weight", 1, 0.25
        layer.output_activation = "sigmoid"
        layer.gate.z_loss_weight, layer.gate.normalize = 0.5, "all"
        path = Path(self.get_temp_dir(), "set_later.keras")
        model.save(path)
        loaded = keras.models.load_model(path)
        again = loaded.layers[-1]
        self.assertEqual((again.drop_by, again.importance_weight, again.load_weight), ("weight", 1.0, 0.25))
        self.assertEqual((again.gate.z_loss_weight, again.gate.normalize), (0.5, "all"))
        x = self.normal(8, 3)
        self.assertAllClose(loaded(x), model(x))
        self.assertAllInRange(model(x), 0.0, 1.0)

    def test_a_capacity_set_later(self):
        layer = SparseMoE(4, k=2, expert=lambda: keras.layers.Dense(3))
        self.assertFalse(layer.supports_jit)
        layer.capacity_factor = 1.5
        self.assertTrue(layer.supports_jit)
        self.assertEqual(SparseMoE.from_config(layer.get_config()).capacity_factor, 1.5)
        layer.capacity_factor = None
        self.assertFalse(layer.supports_jit)

    @every_kind
    def test_clone(self, arguments):
        model = recurrent_model(arguments)
        clone = keras.models.clone_model(model)
        clone.set_weights(model.get_weights())
        x = self.rng.integers(0, 11, (3, 5))
        self.assertAllClose(model(x), clone(x), atol=1e-6)

    @parameterized.parameters(True, False)
    def test_a_gate_of_two_layers_is_one_gate_when_loaded(self, by_name):
        """Whether it was passed to both, or made by the one and passed to the other."""
        first = SparseMoE(6, 5, k=2, gate="noisy_top_k" if by_name else tf_moe.gates.NoisyTopK(6, 2))
        layers = [first, SparseMoE(6, 5, k=2, gate=first.gate)]
        model = keras.Sequential([keras.Input((4,)), *layers])
        model.set_weights([self.normal(*w.shape) for w in model.get_weights()])
        path = Path(self.get_temp_dir(), "shared.keras")
        model.save(path)
        again = keras.models.load_model(path)
        self.assertIs(again.layers[0].gate, again.layers[1].gate)
        x = self.normal(7, 4)
        self.assertAllEqual(again(x), model(x))

    @parameterized.parameters(
        lambda: keras.layers.Dense(4),
        lambda: keras.Sequential([keras.Sequential([keras.layers.Dense(5, "relu")]), keras.layers.Dense(4)]),
    )
    def test_experts_that_a_function_made_are_loaded(self, make):
        """Also from a file of what was loaded. Those that are one layer are built in the bank, as their paths say."""
        model = keras.Sequential([keras.Input((4,)), SparseMoE(3, k=2, expert=make, name="moe")])
        model.set_weights([self.normal(*w.shape) for w in model.get_weights()])
        x = self.normal(9, 4)
        expected = model(x)
        for n in range(2):
            file = Path(self.get_temp_dir(), f"{n}.keras")
            model.save(file)
            model = keras.models.load_model(file)
            self.assertAllClose(model(x), expected)
            if isinstance(model.layers[0].experts.layers[0], keras.layers.Dense):
                self.assertLen([w for w in model.trainable_weights if "/experts/" in w.path], 3 * 2)

    @parameterized.named_parameters(
        ("built_in", {"shared_expert_hidden": 3, "gate": "bias_balanced"}),
        ("layers", {"expert": lambda: keras.layers.Dense(4)}),
    )
    def test_what_is_frozen_stays_so(self, arguments):
        arguments = {"num_experts": 3, "k": 2, **({} if "expert" in arguments else {"expert_hidden": 5}), **arguments}
        model = keras.Sequential([keras.Input((4,)), SparseMoE(**arguments), keras.layers.Dense(2)])
        model.layers[0].trainable = False
        path = Path(self.get_temp_dir(), "frozen.keras")
        model.save(path)
        made = keras.Sequential([keras.Input((4,)), SparseMoE(**arguments, trainable=False), keras.layers.Dense(2)])
        for each in (model, keras.models.load_model(path), keras.models.clone_model(model), made):
            self.assertLen(each.trainable_weights, 2)
            before = each.layers[0].get_weights()
            each.compile("sgd", "mse")
            each.train_on_batch(self.normal(6, 4), self.normal(6, 2))
            for ours, expected in zip(each.layers[0].get_weights(), before, strict=True):
                self.assertAllEqual(ours, expected)

    def test_a_layer_of_a_config_says_what_it_will_freeze(self):
        config = {**SparseMoE(3, 5, k=2, shared_expert_hidden=4).get_config(), "frozen": ["gate", "shared_expert"]}
        layer = SparseMoE.from_config(SparseMoE.from_config(config).get_config())
        layer.build((None, 4))
        self.assertEqual([layer.gate.trainable, layer.experts.trainable, layer.shared_expert.trainable], [0, 1, 0])
        self.assertEqual(layer.get_config()["frozen"], ["gate", "shared_expert"])

    def test_paths_of_loaded_weights_are_those_of_the_saved(self):
        """By which `optimizer_for` knows the experts: of a list too, and of those that were built before the layer."""
        before = keras.layers.Dense(4, name="before")
        before.build((None, 4))
        experts = [before, keras.layers.Dense(4, name="within")]
        gate = tf_moe.gates.NoisyTopK(2, 1)
        model = keras.Sequential([keras.Input((4,)), SparseMoE(2, k=1, expert=experts, gate=gate, name="moe")])
        path = Path(self.get_temp_dir(), "paths.keras")
        model.save(path)
        for each in (model, keras.models.load_model(path), keras.models.clone_model(model)):
            # Keras names the Sequential model only where that built its layers.
            paths = [weight.path.removeprefix("sequential/") for weight in each.weights]
            self.assertContainsSubset(["before/kernel", "moe/experts/within/kernel", "moe/gate/kernel"], paths)

    def test_parts_that_are_frozen_stay_so(self):
        for parts in ({"gate"}, {"experts", "shared_expert"}):
            with self.subTest(parts):
                layer = SparseMoE(3, 5, k=2, shared_expert_hidden=4, name="moe")
                model = keras.Sequential([keras.Input((4,)), layer])
                for part in parts:
                    getattr(layer, part).trainable = False
                path = Path(self.get_temp_dir(), "parts.keras")
                model.save(path)

                def trained(model):
                    return [w.path.split("moe/")[1] for w in model.trainable_weights]

                self.assertBetween(len(trained(model)), 1, len(layer.weights) - 1)
                for each in (keras.models.load_model(path), keras.models.clone_model(model)):
                    self.assertEqual(trained(each), trained(model))
                    self.assertEqual(each.layers[0].get_config(), layer.get_config())

    def test_experts_of_two_layers_are_one_set_when_loaded(self):
        experts = [keras.layers.Dense(4) for _ in range(3)]
        model = keras.Sequential([keras.Input((4,)), *(SparseMoE(3, k=2, expert=experts) for _ in range(2))])
        path = Path(self.get_temp_dir(), "experts.keras")
        model.save(path)
        again = keras.models.load_model(path)
        for one, other in zip(*(layer.experts.layers for layer in again.layers), strict=True):
            self.assertIs(one, other)
        x = self.normal(7, 4)
        self.assertAllEqual(again(x), model(x))

    def test_weights_have_the_documented_names(self):
        layer = SparseMoE(6, 5, k=2, use_bias=True, name="moe")
        layer.build((None, 4))
        shapes = {w.path: tuple(w.shape) for w in layer.weights}
        self.assertEqual(
            shapes,
            {
                "moe/gate/kernel": (4, 6),
                "moe/gate/noise_kernel": (4, 6),
                "moe/experts/hidden_kernel": (6, 4, 5),
                "moe/experts/output_kernel": (6, 5, 4),
                "moe/experts/hidden_bias": (6, 5),
                "moe/experts/output_bias": (6, 4),
            },
        )
        self.assertAllEqual(layer.gate.kernel, np.zeros((4, 6)))
        self.assertAllEqual(layer.gate.noise_kernel, np.zeros((4, 6)))
