import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.bad_input.base import INF, NAN, BadInput, moe, zeros
from tf_moe.gates import NoisyTopK
from tf_moe.layers import SparseMoE


class SparseMoETest(BadInput):
    @parameterized.named_parameters(
        ("experts_text", lambda: moe(num_experts="8"), ValueError, "num_experts='8'"),
        ("experts_none", lambda: moe(num_experts=None), ValueError, "num_experts=None"),
        ("experts_true", lambda: moe(num_experts=True), ValueError, "num_experts=True"),
        ("experts_fraction", lambda: moe(num_experts=8.0), ValueError, r"num_experts=8\.0"),
        ("experts_negative", lambda: moe(num_experts=-1), ValueError, "num_experts=-1"),
        ("k_above_experts", lambda: moe(k=9), ValueError, "k=9, num_experts=8. Pass k<=8"),
        ("k_zero", lambda: moe(k=0), ValueError, "positive integer. Received: k=0"),
        ("k_none", lambda: moe(k=None), ValueError, "k=None"),
        ("k_pair_of_one_level", lambda: moe(k=(2, 2)), ValueError, "must be a pair.*num_experts=8"),
        ("pair_with_one_k", lambda: moe(num_experts=(4, 2)), ValueError, "must be a pair.*k=2"),
        ("pair_in_pair", lambda: moe(num_experts=(4, (2, 2)), k=(1, 1)), ValueError, r"num_experts\[1\]=\(2, 2\)"),
        ("second_k", lambda: moe(num_experts=(4, 2), k=(2, 3)), ValueError, r"k=3, num_experts\[1\]=2"),
        ("hidden_text", lambda: moe(expert_hidden="64"), ValueError, "expert_hidden='64'"),
        ("hidden_none", lambda: moe(expert_hidden=None), ValueError, "expert_hidden=None"),
        ("hidden_true", lambda: moe(expert_hidden=True), ValueError, "expert_hidden=True"),
        ("gate_unknown", lambda: moe(gate="top_k"), ValueError, "noisy_top_k.*gate='top_k'"),
        ("gate_list", lambda: moe(gate=["noisy_top_k"]), ValueError, r"gate=\['noisy_top_k'\]"),
        ("gate_class", lambda: moe(gate=NoisyTopK), ValueError, "gate=<class"),
        ("gate_of_others", lambda: moe(gate=NoisyTopK(4, 2)), ValueError, "gate for num_experts=4, k=2"),
        ("importance_nan", lambda: moe(importance_weight=NAN), ValueError, "importance_weight=nan"),
        ("importance_false", lambda: moe(importance_weight=False), ValueError, "importance_weight=False"),
        ("importance_array", lambda: moe(importance_weight=zeros(2)), ValueError, "importance_weight=array"),
        ("load_negative", lambda: moe(load_weight=-0.1), ValueError, "load_weight=-0.1"),
        ("load_text", lambda: moe(load_weight="0.1"), ValueError, "load_weight='0.1'"),
        ("capacity_text", lambda: moe(capacity_factor="1"), ValueError, "None to drop nothing.*capacity_factor='1'"),
        ("capacity_nan", lambda: moe(capacity_factor=NAN), ValueError, "capacity_factor=nan"),
        ("capacity_infinite", lambda: moe(capacity_factor=INF), ValueError, "capacity_factor=inf"),
        ("capacity_true", lambda: moe(capacity_factor=True), ValueError, "capacity_factor=True"),
        ("capacity_negative", lambda: moe(capacity_factor=-1), ValueError, "capacity_factor=-1"),
        ("drop_by", lambda: moe(drop_by="luck"), ValueError, "one of .*drop_by='luck'"),
        ("expert_dropout", lambda: moe(expert_dropout=1), ValueError, "under 1. Received: expert_dropout=1"),
        ("expert_dropout_text", lambda: moe(expert_dropout="no"), ValueError, "expert_dropout='no'"),
        (
            "dropout_of_layers",
            lambda: moe(expert=keras.layers.Identity, expert_dropout=0.1),
            ValueError,
            "Put keras.layers.Dropout",
        ),
        ("shared_expert", lambda: moe(shared_expert_hidden=0), ValueError, "shared_expert_hidden=0"),
        ("use_bias_word", lambda: moe(use_bias="no"), ValueError, "True or False. Received: use_bias='no'"),
        ("recompute_number", lambda: moe(recompute=2), ValueError, "recompute=2"),
        ("seed_fraction", lambda: moe(seed=1.5), ValueError, "seed=1.5"),
        ("seed_true", lambda: moe(seed=True), ValueError, "seed=True"),
        ("seed_too_large", lambda: moe(seed=2**70), ValueError, f"64 bits.*seed={2**70}"),
        ("expert_word", lambda: moe(expert="dense"), ValueError, "list of 8 layers.*expert='dense'"),
        ("expert_short_list", lambda: moe(expert=[keras.layers.Dense(4)]), ValueError, r"expert=\[<Dense"),
        ("expert_one_layer", lambda: moe(expert=keras.layers.Dense(4)), ValueError, "a function.*expert=<Dense"),
        ("expert_of_no_layer", lambda: moe(expert=lambda: 3), ValueError, "Received: 3"),
        ("expert_with_arguments", lambda: moe(expert=lambda n: n), ValueError, "function without arguments"),
        ("expert_class", lambda: moe(expert=keras.layers.Dense), ValueError, "without arguments.*class"),
        (
            "pair_of_one_level",
            lambda: moe(num_experts=(4, 2), k=(1, 2), gate="sinkhorn"),
            ValueError,
            "one level.*noisy_top_k",
        ),
        ("no_k", lambda: moe(k=None, gate="sinkhorn"), ValueError, "needs k.*dense_softmax and switch"),
        ("k_of_gate", lambda: moe(k=4, gate=NoisyTopK(8, 2)), ValueError, "Pass k=None for the gate's own"),
        (
            "activation_with_weights",
            lambda: moe(activation=keras.layers.PReLU())(zeros(3, 4)),
            ValueError,
            "no weights.*Pass expert=",
        ),
        (
            "activation_halves",
            lambda: moe(expert_hidden=64, activation="glu")(zeros(3, 4)),
            ValueError,
            "keep the width.*32 of 64",
        ),
        ("activation", lambda: moe(activation="no_such"), ValueError, "no_such"),
        ("initializer", lambda: moe(kernel_initializer=3), ValueError, "identifier: 3"),
        ("regularizer", lambda: moe(kernel_regularizer="l3"), ValueError, "l3"),
        ("constraint", lambda: moe(kernel_constraint="positive"), ValueError, "positive"),
        ("unknown_argument", lambda: moe(experts=8), ValueError, "'experts': 8"),
        ("dtype", lambda: moe(dtype="float33"), ValueError, "float33"),
    )
    def test_arguments(self, call, error, pattern):
        self.check(call, error, pattern)

    @parameterized.named_parameters(
        ("scalar", lambda: moe()(np.float32(1)), ValueError, r"min_ndim=2.*\(\)"),
        ("vector", lambda: moe()(zeros(4)), ValueError, r"min_ndim=2.*\(4,\)"),
        ("nothing", lambda: moe()(None), ValueError, "Got 'None'"),
        ("two_tensors", lambda: moe()([zeros(2, 4)] * 2), ValueError, "received 2 input tensors"),
        ("text", lambda: moe()(tf.constant([["a"]])), ValueError, "dtype string. Embed or cast"),
        ("integers", lambda: moe()(zeros(2, 4, dtype="int32")), ValueError, "dtype int32"),
        ("booleans", lambda: moe()(zeros(2, 4, dtype="bool")), ValueError, "dtype bool"),
        ("complex", lambda: moe()(zeros(2, 4, dtype="complex64")), ValueError, "dtype complex64"),
        ("symbolic_integers", lambda: moe()(keras.Input((3, 4), dtype="int32")), ValueError, "dtype int32"),
        ("no_width", lambda: moe()(zeros(2, 0)), ValueError, r"static width D, 1 or more.*\(2, 0\)"),
        ("unknown_width", lambda: moe()(keras.Input((3, None))), ValueError, r"\(None, 3, None\)"),
        ("ragged", lambda: moe()(tf.ragged.constant([[1.0], [1.0, 2.0]])), ValueError, r"\(2, None\)"),
        ("mask_too_long", lambda: moe()(zeros(2, 3, 4), mask=np.ones((2, 4))), ValueError, r"mask \(2, 4\)"),
        ("mask_with_width", lambda: moe()(zeros(2, 3), mask=np.ones((2, 3))), ValueError, r"mask \(2, 3\)"),
        ("mask_scalar", lambda: moe()(zeros(2, 3, 4), mask=True), ValueError, r"mask \(\), inputs \(2, 3, 4\)"),
        ("mask_of_text", lambda: moe()(zeros(2, 4), mask=np.array(["a", "b"])), ValueError, "mask of dtype string"),
        ("shape_none", lambda: moe().build(None), ValueError, "input shape None"),
        ("shape_of_names", lambda: moe().build({"a": 1}), ValueError, "input shape {'a': 1}"),
        ("training_text", lambda: moe()(zeros(2, 4), training="yes"), ValueError, "True or False.*training='yes'"),
        ("gate_id", lambda: moe()(zeros(2, 4), gate_id=[0, 1]), ValueError, "takes no gate_id.*gate_id=.*num_gates="),
        ("gate_id_of_words", lambda: moe(gate="hash")(zeros(2, 4), gate_id=["a", "b"]), ValueError, "dtype string"),
        ("gate_id_shape", lambda: moe(gate="hash")(zeros(2, 4), gate_id=[1] * 3), ValueError, r"gate_id \(3,\)"),
        ("route_gate_id", lambda: moe().route(zeros(2, 4), gate_id=[0, 1]), ValueError, "takes no gate_id"),
        ("route_training", lambda: moe().route(zeros(2, 4), training="no"), ValueError, "training='no'"),
        ("route_vector", lambda: moe().route(zeros(4)), ValueError, r"\(4,\)"),
        ("route_integers", lambda: moe().route(zeros(2, 4, dtype="int32")), ValueError, "dtype int32"),
        ("route_mask", lambda: moe().route(zeros(2, 4), mask=[True]), ValueError, r"mask \(1,\), inputs \(2, 4\)"),
    )
    def test_inputs(self, call, error, pattern):
        self.check(call, error, pattern)

    @parameterized.parameters(
        ("k", 1), ("num_experts", 4), ("expert_hidden", 9), ("activation", "gelu"), ("use_bias", True), ("seed", 3)
    )
    def test_what_is_fixed(self, name, value):
        """Set afterwards, it would be in a copy and in a file, but not in the layer."""
        for layer in (moe(), moe(gate=NoisyTopK(8, 2))):
            pattern = f"{name} of a SparseMoE is fixed.*{name}={value!r}.*from_config"
            self.check(lambda layer=layer: setattr(layer, name, value), AttributeError, pattern)
        if name in ("k", "num_experts", "seed"):
            self.check(lambda: setattr(layer.gate, name, value), AttributeError, "of a NoisyTopK is fixed")

    @parameterized.parameters(
        ("capacity_factor", -1, "capacity_factor=-1"),
        ("drop_by", "weights", "one of .*drop_by='weights'"),
        ("importance_weight", -1.0, "importance_weight=-1.0"),
        ("load_weight", None, "load_weight=None"),
        ("output_activation", "no_such", "no_such"),
    )
    def test_what_is_set_later(self, name, value, pattern):
        """It would be saved, and the file would not load."""
        layer = moe()
        before = getattr(layer, name)
        self.check(lambda: setattr(layer, name, value), ValueError, pattern)
        self.assertEqual(getattr(layer, name), before)

    def test_another_width_than_built_for(self):
        layer = moe()
        layer(zeros(2, 4))
        for call in (layer, layer.route):
            self.check(lambda call=call: call(zeros(2, 5)), ValueError, r"axis -1.* value 4.*\(2, 5\)")

    @parameterized.named_parameters(
        ("missing_key", {}, TypeError, "'num_experts'"),
        ("unknown_key", {"num_experts": 4, "expert_hidden": 2, "colour": 1}, ValueError, "'colour': 1"),
        ("unknown_gate", {"num_experts": 4, "expert_hidden": 2, "gate": "top_k"}, ValueError, "gate='top_k'"),
        ("empty_gate", {"num_experts": 4, "expert_hidden": 2, "gate": {}}, ValueError, "gate={}"),
        ("number_for_experts", {"num_experts": 4, "expert": 3}, ValueError, "expert=3"),
        ("words_for_experts", {"num_experts": 2, "k": 1, "expert": ["a", "b"]}, ValueError, "Received: 'a'"),
        ("text_for_a_number", {"num_experts": "4", "expert_hidden": 2}, ValueError, "num_experts='4'"),
    )
    def test_configs(self, config, error, pattern):
        self.check(lambda: SparseMoE.from_config(config), error, pattern)

    def test_configs_of_gates_that_are_none(self):
        config = {"num_experts": 4, "expert_hidden": 2}
        dense = keras.saving.serialize_keras_object(keras.layers.Dense(2))
        unknown = {"module": "nowhere", "class_name": "Switch", "config": {}, "registered_name": "Switch"}
        self.check(lambda: SparseMoE.from_config({**config, "gate": dense}), ValueError, "gate=<Dense")
        self.check(lambda: SparseMoE.from_config({**config, "gate": unknown}), TypeError, "class 'Switch'")
