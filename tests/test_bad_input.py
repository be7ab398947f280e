"""Bad calls of the public API: each ends in an exception of the right type that names what was received.

A row is (name, call, exception, pattern), and every pattern holds the received value.
"""

import contextlib
import io
import json
import tempfile
import zipfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tests.text.files import text_of
from tf_moe import analysis, distribute, gates, losses, text
from tf_moe.analysis.plots import plot_load, plot_perplexity
from tf_moe.analysis.scaling import step_cost
from tf_moe.distribute import ExpertParallelStrategy, Resume, launch, restore_sharded, save_sharded
from tf_moe.gates import Hierarchical, NoisyTopK, StrictlyBalanced
from tf_moe.layers import LSTM, SampledSoftmax, SampledSoftmaxLoss, SparseMoE
from tf_moe.models import Perplexity, dense_twin, language_model
from tf_moe.optimizers import FactoredAdam, WarmupInverseSqrt, optimizer_for

NAN, INF = float("nan"), float("inf")


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


def moe(**arguments):
    return SparseMoE(**{"num_experts": 8, "expert_hidden": 3, "k": 2, **arguments})


def dense_model(width=3):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(width)])


def moe_model(**arguments):
    return keras.Sequential([keras.Input((4,)), moe(**arguments)])


class BadInput(TestCase):
    def folder(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return Path(folder.name)

    def check(self, call, error, pattern):
        with self.assertRaisesRegex(error, pattern):
            call()


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
        ("use_bias_word", lambda: moe(use_bias="no"), ValueError, "True or False. Received: use_bias='no'"),
        ("recompute_number", lambda: moe(recompute=2), ValueError, "recompute=2"),
        ("seed_fraction", lambda: moe(seed=1.5), ValueError, "seed=1.5"),
        ("seed_true", lambda: moe(seed=True), ValueError, "seed=True"),
        ("seed_too_large", lambda: moe(seed=2**70), ValueError, f"64 bits.*seed={2**70}"),
        ("expert_word", lambda: moe(expert="dense"), ValueError, "list of 8 layers.*expert='dense'"),
        ("expert_short_list", lambda: moe(expert=[keras.layers.Dense(4)]), ValueError, r"expert=\[<Dense"),
        ("expert_of_no_layer", lambda: moe(expert=lambda: 3), ValueError, "Received: 3"),
        ("expert_with_arguments", lambda: moe(expert=lambda n: n), TypeError, "argument: 'n'"),
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
        ("route_vector", lambda: moe().route(zeros(4)), ValueError, r"\(4,\)"),
        ("route_integers", lambda: moe().route(zeros(2, 4, dtype="int32")), ValueError, "dtype int32"),
        ("route_mask", lambda: moe().route(zeros(2, 4), mask=[True]), ValueError, r"mask \(1,\), inputs \(2, 4\)"),
    )
    def test_inputs(self, call, error, pattern):
        self.check(call, error, pattern)

    def test_another_width_than_built_for(self):
        layer = moe()
        layer(zeros(2, 4))
        for call in (layer, layer.route):
            self.check(lambda call=call: call(zeros(2, 5)), ValueError, r"axis -1.* value 4.*\(2, 5\)")

    @parameterized.named_parameters(
        ("missing_key", {}, TypeError, "'num_experts'"),
        ("unknown_key", {"num_experts": 4, "expert_hidden": 2, "colour": 1}, ValueError, "'colour': 1"),
        ("unknown_gate", {"num_experts": 4, "expert_hidden": 2, "gate": "switch"}, ValueError, "gate='switch'"),
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


class GatesTest(BadInput):
    @parameterized.named_parameters(
        ("noisy_k", lambda: NoisyTopK(4, 5), ValueError, "k=5, num_experts=4. Pass k<=4"),
        ("noisy_pair", lambda: NoisyTopK((2, 2), 1), ValueError, r"num_experts=\(2, 2\)"),
        ("noisy_seed", lambda: NoisyTopK(4, 2, seed="a"), ValueError, "seed='a'"),
        ("noisy_initializer", lambda: NoisyTopK(4, 2, kernel_initializer="no_such"), ValueError, "no_such"),
        ("noisy_config", lambda: NoisyTopK.from_config({"num_experts": 4}), TypeError, "'k'"),
        ("balanced_fraction", lambda: StrictlyBalanced(4, 1.5), ValueError, "k=1.5"),
        ("balanced_seed", lambda: StrictlyBalanced(4, 2, seed=1.5), ValueError, "seed=1.5"),
        ("hierarchical_number", lambda: Hierarchical(16, (2, 2)), ValueError, "must be a pair.*num_experts=16"),
        ("hierarchical_text", lambda: Hierarchical("ab", (1, 1)), ValueError, "num_experts='ab'"),
        ("hierarchical_true", lambda: Hierarchical((True, 2), (1, 1)), ValueError, r"num_experts\[0\]=True"),
        ("hierarchical_triple", lambda: Hierarchical((2, 2), (1, 1, 1)), ValueError, r"k=\(1, 1, 1\)"),
        ("get_unknown", lambda: gates.get("switch", 4, 2), ValueError, "gate='switch'"),
        ("get_list", lambda: gates.get(["noisy_top_k"], 4, 2), ValueError, r"gate=\['noisy_top_k'\]"),
        ("get_one_level", lambda: gates.get("hierarchical", 4, 2), ValueError, "must be a pair.*num_experts=4"),
        ("get_two_levels", lambda: gates.get("strictly_balanced", (2, 4), 1), ValueError, r"num_experts=\(2, 4\)"),
        ("get_option", lambda: gates.get("noisy_top_k", 4, 2, colour=1), ValueError, "'colour': 1"),
        ("get_for_others", lambda: gates.get(NoisyTopK(4, 2), 8, 2), ValueError, "num_experts=8, k=2"),
        (
            "get_option_of_a_gate",
            lambda: gates.get(NoisyTopK(4, 2), 4, 2, kernel_initializer="ones"),
            ValueError,
            "'kernel_initializer': 'ones'.*Give them to the gate itself",
        ),
        ("noisy_vector", lambda: NoisyTopK(4, 2)(zeros(3)), ValueError, r"ndim=2, found ndim=1.*\(3,\)"),
        ("noisy_rank_3", lambda: NoisyTopK(4, 2)(zeros(2, 3, 4)), ValueError, r"ndim=2, found ndim=3.*\(2, 3, 4\)"),
        ("balanced_rank_3", lambda: StrictlyBalanced(4, 2)(zeros(2, 3, 4)), ValueError, r"\(2, 3, 4\)"),
        ("hierarchical_rank_3", lambda: Hierarchical((4, 2), (2, 1))(zeros(2, 3, 4)), ValueError, r"\(2, 3, 4\)"),
        ("integers", lambda: NoisyTopK(4, 2)(zeros(2, 3, dtype="int32")), ValueError, "dtype int32"),
        ("mask", lambda: NoisyTopK(4, 2)(zeros(2, 3), mask=[True] * 3), ValueError, r"mask \(3,\), inputs \(2, 3\)"),
        ("balanced_mask", lambda: StrictlyBalanced(4, 2)(zeros(2, 3), mask=[True]), ValueError, r"mask \(1,\)"),
        ("unknown_width", lambda: NoisyTopK(4, 2).build((None, None)), ValueError, r"shape=\(None, 4\)"),
    )
    def test_calls(self, call, error, pattern):
        self.check(call, error, pattern)

    def test_another_width_than_built_for(self):
        for gate in (NoisyTopK(4, 2), StrictlyBalanced(4, 2), Hierarchical((4, 2), (2, 1))):
            gate(zeros(2, 3))
            self.check(lambda gate=gate: gate(zeros(2, 5)), ValueError, r"axis -1.* value 3.*\(2, 5\)")


def sampled_loss(targets, training=True):
    return SampledSoftmaxLoss()(tf.constant(targets), SampledSoftmax(5, 3)(zeros(2, 3), training=training))


class SampledSoftmaxTest(BadInput):
    @parameterized.named_parameters(
        ("vocabulary_zero", lambda: SampledSoftmax(0), ValueError, "vocabulary_size=0"),
        ("vocabulary_true", lambda: SampledSoftmax(True), ValueError, "vocabulary_size=True"),
        ("vocabulary_text", lambda: SampledSoftmax("5"), ValueError, "vocabulary_size='5'"),
        ("sampled_none", lambda: SampledSoftmax(5, None), ValueError, "num_sampled=None"),
        ("sampled_fraction", lambda: SampledSoftmax(5, 1.5), ValueError, "num_sampled=1.5"),
        ("sampling", lambda: SampledSoftmax(5, sampling="zipf"), ValueError, "log_uniform.*sampling='zipf'"),
        ("seed", lambda: SampledSoftmax(5, seed="a"), ValueError, "seed='a'"),
        ("initializer", lambda: SampledSoftmax(5, kernel_initializer="no_such"), ValueError, "no_such"),
        ("config", lambda: SampledSoftmax.from_config({}), TypeError, "'vocabulary_size'"),
        ("scalar", lambda: SampledSoftmax(5)(zeros()), ValueError, r"min_ndim=1.*\(\)"),
        ("integers", lambda: SampledSoftmax(5)(zeros(2, 3, dtype="int32")), ValueError, "dtype int32"),
        ("symbolic_booleans", lambda: SampledSoftmax(5)(keras.Input((3,), dtype="bool")), ValueError, "dtype bool"),
        ("unknown_width", lambda: SampledSoftmax(5)(keras.Input((3, None))), ValueError, r"shape=\(5, None\)"),
        ("targets_one_hot", lambda: sampled_loss(np.eye(5)[:2]), ValueError, r"targets \(2, 5\).*not one-hot"),
        ("targets_too_many", lambda: sampled_loss([1, 1, 1]), ValueError, r"targets \(3,\), predictions \(2, 3\)"),
        ("targets_evaluated", lambda: sampled_loss([1, 1, 1], False), ValueError, r"targets \(3,\), .*\(2, 5\)"),
        ("target_unknown", lambda: sampled_loss([7, 1]), tf.errors.InvalidArgumentError, r"7 is not in \[0, 5\)"),
        ("reduction", lambda: SampledSoftmaxLoss(reduction="best"), ValueError, "best"),
    )
    def test_calls(self, call, error, pattern):
        self.check(call, error, pattern)

    def test_another_width_than_built_for(self):
        layer = SampledSoftmax(5)
        layer(zeros(2, 3))
        self.check(lambda: layer(zeros(2, 4)), ValueError, r"axis -1.* value 3.*\(2, 4\)")


class LSTMTest(BadInput):
    @parameterized.named_parameters(
        ("units_zero", lambda: LSTM(0), ValueError, "units=0"),
        ("units_fraction", lambda: LSTM(2.5), ValueError, "units=2.5"),
        ("units_text", lambda: LSTM("8"), ValueError, "units='8'"),
        ("units_true", lambda: LSTM(True), ValueError, "units=True"),
        ("units_none", lambda: LSTM(None), ValueError, "units=None"),
        ("projection_zero", lambda: LSTM(4, projection=0), ValueError, "or None. Received: projection=0"),
        ("projection_true", lambda: LSTM(4, projection=True), ValueError, "projection=True"),
        ("projection_text", lambda: LSTM(4, projection="2"), ValueError, "projection='2'"),
        ("cudnn_number", lambda: LSTM(4, use_cudnn=1), ValueError, "use_cudnn=1. Pass 'auto'"),
        ("cudnn_none", lambda: LSTM(4, use_cudnn=None), ValueError, "use_cudnn=None"),
        ("cudnn_projection", lambda: LSTM(4, projection=2, use_cudnn=True), ValueError, "projection=2, use_cudnn=True"),
        ("dropout_above", lambda: LSTM(4, dropout=1.5), ValueError, "from 0 to 1. Received: dropout=1.5"),
        ("dropout_nan", lambda: LSTM(4, dropout=NAN), ValueError, "dropout=nan"),
        ("dropout_text", lambda: LSTM(4, dropout="0.1"), ValueError, "dropout='0.1'"),
        ("recurrent_dropout", lambda: LSTM(4, recurrent_dropout=-0.5), ValueError, "recurrent_dropout=-0.5"),
        ("activation", lambda: LSTM(4, activation="no_such"), ValueError, "no_such"),
        ("unknown_argument", lambda: LSTM(4, peephole=True), ValueError, "'peephole': True"),
        ("config", lambda: LSTM.from_config({}), TypeError, "'units'"),
        ("rank_2", lambda: LSTM(4)(zeros(2, 3)), ValueError, r"ndim=3, found ndim=2.*\(2, 3\)"),
        ("unknown_width", lambda: LSTM(4)(keras.Input((3, None))), ValueError, r"shape=\(None, 16\)"),
        ("mask_too_long", lambda: LSTM(4)(zeros(2, 3, 4), mask=np.ones((2, 4), bool)), ValueError, r"mask \(2, 4\)"),
        ("mask_of_the_batch", lambda: LSTM(4)(zeros(2, 3, 4), mask=np.ones(2, bool)), ValueError, r"mask \(2,\)"),
        ("mask_of_others", lambda: LSTM(4)(zeros(2, 3, 4), mask=np.ones((3, 3), bool)), ValueError, r"mask \(3, 3\)"),
        ("one_state", lambda: LSTM(4)(zeros(2, 3, 4), initial_state=[zeros(2, 4)]), ValueError, r"shapes \[\(2, 4\)\]"),
        (
            "width_of_state",
            lambda: LSTM(4, projection=2)(zeros(2, 3, 4), initial_state=[zeros(2, 4)] * 2),
            ValueError,
            r"\[h, c\], of shapes \(2, 2\) and \(2, 4\).*shapes \[\(2, 4\), \(2, 4\)\]",
        ),
        (
            "batch_of_state",
            lambda: LSTM(4)(zeros(2, 3, 4), initial_state=[zeros(3, 4)] * 2),
            ValueError,
            r"shapes \[\(3, 4\), \(3, 4\)\]",
        ),
    )
    def test_calls(self, call, error, pattern):
        self.check(call, error, pattern)

    def test_another_width_than_built_for(self):
        layer = LSTM(4)
        layer(zeros(2, 3, 4))
        self.check(lambda: layer(zeros(2, 3, 5)), ValueError, r"axis -1.* value 4.*\(2, 3, 5\)")


def smooth_load(k=1, noisy=(2, 3), **arguments):
    return losses.smooth_load(zeros(2, 3), zeros(*noisy), np.ones((2, 3)), k, **arguments)


def threshold_loss(chosen=(2, 3), **arguments):
    return losses.threshold_loss(zeros(2, 3), zeros(3), np.ones(chosen, bool), **arguments)


class LossesTest(BadInput):
    @parameterized.named_parameters(
        ("importance_vector", lambda: losses.importance(zeros(3)), ValueError, r"\(T, E\).*shape \(3,\)"),
        ("importance_rank_3", lambda: losses.importance(zeros(3, 2, 2)), ValueError, r"shape \(3, 2, 2\)"),
        ("load_k_zero", lambda: smooth_load(0), ValueError, r"1\.\.3.*k=0"),
        ("load_k_above", lambda: smooth_load(4), ValueError, r"1\.\.3.*k=4"),
        ("load_k_text", lambda: smooth_load("1"), ValueError, "k='1'"),
        ("load_k_fraction", lambda: smooth_load(1.5), ValueError, "k=1.5"),
        ("load_k_true", lambda: smooth_load(True), ValueError, "k=True"),
        ("load_shapes", lambda: smooth_load(noisy=(1, 3)), ValueError, r"noisy_logits \(1, 3\), clean_logits \(2, 3\)"),
        ("load_mask", lambda: smooth_load(mask=[True] * 3), ValueError, r"mask \(3,\)"),
        ("threshold_chosen", lambda: threshold_loss((1, 3)), ValueError, r"chosen \(1, 3\), scores \(2, 3\)"),
        ("threshold_mask", lambda: threshold_loss(mask=[True] * 3), ValueError, r"mask \(3,\)"),
        ("cv_of_text", lambda: losses.cv_squared("a"), tf.errors.UnimplementedError, "string to float"),
    )
    def test_calls(self, call, error, pattern):
        self.check(call, error, pattern)


def adam_for_both():
    adam = keras.optimizers.Adam()
    return optimizer_for(adam, adam)


class OptimizersTest(BadInput):
    @parameterized.named_parameters(
        ("beta_1_one", lambda: FactoredAdam(beta_1=1.0), ValueError, "below 1. Received: beta_1=1.0"),
        ("beta_1_text", lambda: FactoredAdam(beta_1="a"), ValueError, "beta_1='a'"),
        ("beta_2_negative", lambda: FactoredAdam(beta_2=-0.1), ValueError, "beta_2=-0.1"),
        ("beta_2_nan", lambda: FactoredAdam(beta_2=NAN), ValueError, "beta_2=nan"),
        ("beta_2_none", lambda: FactoredAdam(beta_2=None), ValueError, "beta_2=None"),
        ("epsilon_negative", lambda: FactoredAdam(epsilon=-1), ValueError, "epsilon=-1"),
        ("epsilon_text", lambda: FactoredAdam(epsilon="small"), ValueError, "epsilon='small'"),
        ("decay_negative", lambda: FactoredAdam(weight_decay=-1), ValueError, "weight_decay=-1"),
        ("rate_nan", lambda: FactoredAdam(NAN), ValueError, "learning_rate=nan"),
        ("rate_negative", lambda: FactoredAdam(-0.1), ValueError, "learning_rate=-0.1"),
        ("rate_text", lambda: FactoredAdam("fast"), ValueError, "learning_rate=fast"),
        ("rate_none", lambda: FactoredAdam(None), ValueError, "learning_rate=None"),
        ("two_clips", lambda: FactoredAdam(clipnorm=1, clipvalue=2), ValueError, "clipnorm=1, clipvalue=2"),
        ("average", lambda: FactoredAdam(use_ema=True, ema_momentum=2), ValueError, "ema_momentum=2"),
        ("unknown_argument", lambda: FactoredAdam(momentum=0.9), ValueError, "'momentum': 0.9"),
        ("unknown_key", lambda: FactoredAdam.from_config({"gamma": 1}), ValueError, "'gamma': 1"),
        ("schedule_text", lambda: WarmupInverseSqrt("a"), ValueError, "learning_rate='a'"),
        ("schedule_negative", lambda: WarmupInverseSqrt(-1.0), ValueError, "learning_rate=-1.0"),
        ("schedule_nan", lambda: WarmupInverseSqrt(NAN), ValueError, "learning_rate=nan"),
        ("warmup_zero", lambda: WarmupInverseSqrt(1.0, 0), ValueError, "1 or more. Received: warmup_steps=0"),
        ("warmup_nan", lambda: WarmupInverseSqrt(1.0, NAN), ValueError, "warmup_steps=nan"),
        ("warmup_true", lambda: WarmupInverseSqrt(1.0, True), ValueError, "warmup_steps=True"),
        ("warmup_text", lambda: WarmupInverseSqrt(1.0, "a"), ValueError, "warmup_steps='a'"),
        ("constant_negative", lambda: WarmupInverseSqrt(1.0, 5, -1), ValueError, "constant_steps=-1"),
        ("by_part_words", lambda: optimizer_for("adam", "sgd"), TypeError, "Optimizer instance. Received: sgd"),
        ("by_part_none", lambda: optimizer_for(None, keras.optimizers.Adam()), ValueError, "Received: None"),
        ("by_part_same", adam_for_both, ValueError, "two optimizers.*Received: <keras.*Adam.* for both"),
    )
    def test_calls(self, call, error, pattern):
        self.check(call, error, pattern)


class TextTest(BadInput):
    """The calls take the test, which has a text, its vocabulary and a directory."""

    def setUp(self):
        super().setUp()
        self.directory = self.folder()
        self.text = text_of(self.directory, ["the cat sat", "the dog"])
        self.vocabulary = text.build_vocabulary(self.text, None)

    def contiguous(self, batch_size=2, steps=2, **arguments):
        return text.contiguous_batches(self.text, self.vocabulary, batch_size, steps, **arguments)

    def sentences(self, batch_size=2, **arguments):
        return text.sentence_batches(self.text, self.vocabulary, batch_size, **arguments)

    def load(self, data):
        (self.directory / "tokens.txt").write_bytes(data)
        return text.Vocabulary.load(self.directory / "tokens.txt")

    @parameterized.named_parameters(
        ("files_number", lambda t: text.Text(3), ValueError, "list of paths.*Received: 3"),
        ("files_none", lambda t: text.Text(None), ValueError, "Received: None"),
        ("files_one_path", lambda t: text.Text("a.txt"), ValueError, "Received: 'a.txt'"),
        ("files_bytes", lambda t: text.Text(b"a.txt"), ValueError, "Received: b'a.txt'"),
        ("files_numbers", lambda t: text.Text([3]), ValueError, r"Received: \(3,\)"),
        ("files_missing", lambda t: text.Text([t.directory / "b.txt"]), FileNotFoundError, "b.txt"),
        ("files_directory", lambda t: text.Text([t.directory]), FileNotFoundError, "No such file: '/"),
        ("part", lambda t: text.Text(t.text.files, "dev"), ValueError, "one of .*part='dev'"),
        ("corpus_missing", lambda t: text.Corpus.from_directory("nowhere"), FileNotFoundError, "nowhere"),
        ("corpus_file", lambda t: text.Corpus.from_directory(t.text.files[0]), FileNotFoundError, "text.txt"),
        ("corpus_number", lambda t: text.Corpus.from_directory(3), TypeError, "not int"),
        ("kind", lambda t: text.Tokenizer("chars"), ValueError, "one of .*kind='chars'"),
        ("kind_none", lambda t: text.Tokenizer(None), ValueError, "kind=None"),
        ("size_fraction", lambda t: text.build_vocabulary(t.text, 5.5), ValueError, "size=5.5"),
        ("size_text", lambda t: text.build_vocabulary(t.text, "5"), ValueError, "None for all. Received: size='5'"),
        ("size_true", lambda t: text.build_vocabulary(t.text, True), ValueError, "size=True"),
        ("size_3", lambda t: text.build_vocabulary(t.text, 3), ValueError, "4 or more.*size=3"),
        ("size_beyond", lambda t: text.build_vocabulary(t.text, 99), ValueError, "only 4 distinct.*size=99"),
        ("words_for_text", lambda t: text.build_vocabulary("the text", 5), TypeError, "text='the text'. Pass"),
        (
            "corpus_for_text",
            lambda t: text.build_vocabulary(text.Corpus(t.text, t.text, t.text), 5),
            TypeError,
            r"text=Corpus\(.*such as corpus.train",
        ),
        ("vocabulary_words", lambda t: text.Vocabulary(["a"]), ValueError, r"first tokens must be.*\('a',\)"),
        ("vocabulary_numbers", lambda t: text.Vocabulary([*text.Vocabulary.specials, 3]), ValueError, r"\[3\]"),
        (
            "vocabulary_length",
            lambda t: text.Vocabulary(text.Vocabulary.specials, num_tokens=-1),
            ValueError,
            "num_tokens=-1",
        ),
        ("decode_beyond", lambda t: t.vocabulary.decode([3, 99]), ValueError, r"below 7. Received: \[99\]"),
        ("decode_negative", lambda t: t.vocabulary.decode([-1]), ValueError, r"at least 0.*\[-1\]"),
        ("decode_fractions", lambda t: t.vocabulary.decode([1.5]), ValueError, r"float64 .*\[1.5\]"),
        ("decode_batch", lambda t: t.vocabulary.decode([[1, 2]]), ValueError, r"shape \(1, 2\)"),
        ("encode_numbers", lambda t: t.vocabulary.encode([1, 2]), TypeError, r"\[1, 2\].*string"),
        ("count_words", lambda t: t.vocabulary.count_tokens("the cat"), TypeError, "text='the cat'"),
        ("load_missing", lambda t: text.Vocabulary.load(t.directory / "no"), FileNotFoundError, "no'"),
        ("load_text", lambda t: t.load(b"the cat\n"), ValueError, "not a saved vocabulary.*'the cat'"),
        ("load_bytes", lambda t: t.load(b"\xff\xfe\n"), ValueError, r"not a saved vocabulary.*xff"),
        ("load_kind", lambda t: t.load(b'{"tokenizer": "chars"}\n'), ValueError, "kind='chars'"),
        ("load_key", lambda t: t.load(b'{"colour": 1}\n<pad>\n'), ValueError, "not a saved vocabulary.*colour"),
        ("batch_text", lambda t: t.contiguous("2"), ValueError, "batch_size='2'"),
        ("batch_fraction", lambda t: t.contiguous(2.0), ValueError, r"batch_size=2\.0"),
        ("batch_true", lambda t: t.contiguous(True), ValueError, "batch_size=True"),
        ("batch_none", lambda t: t.contiguous(None), ValueError, "batch_size=None"),
        ("steps_zero", lambda t: t.contiguous(steps=0), ValueError, "steps=0"),
        ("buffer_fraction", lambda t: t.contiguous(shuffle_buffer=1.5), ValueError, "shuffle_buffer=1.5"),
        ("length_negative", lambda t: t.contiguous(num_tokens=-4), ValueError, "num_tokens=-4"),
        ("length_fraction", lambda t: t.contiguous(num_tokens=4.5), ValueError, "num_tokens=4.5"),
        ("seed_text", lambda t: t.contiguous(shuffle_buffer=3, seed="a"), ValueError, "seed='a'"),
        ("stream_of_words", lambda t: text.contiguous_batches("a", t.vocabulary, 2, 2), TypeError, "text='a'"),
        (
            "list_for_vocabulary",
            lambda t: text.contiguous_batches(t.text, ["a"], 2, 2),
            TypeError,
            r"vocabulary=\['a'\]. Pass what build_vocabulary",
        ),
        ("sentences_fraction", lambda t: t.sentences(2.5), ValueError, "batch_size=2.5"),
        ("sentences_none", lambda t: text.sentence_batches(None, t.vocabulary, 2), TypeError, "text=None"),
        ("boundaries_text", lambda t: t.sentences(boundaries="ab"), ValueError, r"boundaries\[0\]='a'"),
        ("boundaries_fraction", lambda t: t.sentences(boundaries=[4.5]), ValueError, r"boundaries\[0\]=4.5"),
        ("boundaries_falling", lambda t: t.sentences(boundaries=[8, 4]), ValueError, r"rising.*\[8, 4\]"),
        ("boundaries_number", lambda t: t.sentences(boundaries=4), TypeError, "'int'"),
        ("length_of_a_row", lambda t: t.sentences(max_length=4.5), ValueError, "max_length=4.5"),
    )
    def test_calls(self, call, error, pattern):
        self.check(lambda: call(self), error, pattern)

    def test_decoding_nothing_is_no_error(self):
        self.assertEqual(self.vocabulary.decode([]), "")


class ModelsTest(BadInput):
    @parameterized.named_parameters(
        ("vocabulary_text", lambda: language_model("10", []), ValueError, "vocabulary_size='10'"),
        ("vocabulary_zero", lambda: language_model(0, []), ValueError, "vocabulary_size=0"),
        ("width_fraction", lambda: language_model(9, [], width=8.0), ValueError, r"width=8\.0"),
        ("dropout_above", lambda: language_model(9, [], dropout=1.5), ValueError, "dropout=1.5"),
        ("dropout_text", lambda: language_model(9, [], dropout="a"), ValueError, "dropout='a'"),
        ("middle_layer", lambda: language_model(9, keras.layers.Dense(8)), TypeError, "list of layers.*middle=<Dense"),
        ("middle_words", lambda: language_model(9, ["moe"]), TypeError, r"middle=\['moe'\]"),
        ("middle_none", lambda: language_model(9, None), TypeError, "middle=None"),
        ("middle_width", lambda: language_model(9, [keras.layers.Dense(7)], width=8), ValueError, "8.*7"),
        ("twin_of_dense", lambda: dense_twin(keras.layers.Dense(3), 4), TypeError, "SparseMoE. Received: moe=<Dense"),
        ("twin_of_none", lambda: dense_twin(None, 4), TypeError, "moe=None"),
        ("twin_width_true", lambda: dense_twin(moe(), True), ValueError, "width=True"),
        ("twin_width_text", lambda: dense_twin(moe(), "4"), ValueError, "width='4'"),
        (
            "twin_of_layers",
            lambda: dense_twin(SparseMoE(2, k=1, expert=lambda: keras.layers.Dense(4)), 4),
            ValueError,
            "Only built-in experts.*expert=",
        ),
        ("perplexity_dtype", lambda: Perplexity(dtype="float33"), ValueError, "float33"),
        ("perplexity_argument", lambda: Perplexity(base=2), TypeError, "'base'"),
        ("perplexity_shapes", lambda: Perplexity().update_state([0, 1, 1], zeros(2, 2)), ValueError, r"\(3,\).*\(2, 2"),
    )
    def test_calls(self, call, error, pattern):
        self.check(call, error, pattern)


def cost(num_experts=4, width=8, expert_hidden=8, k=1, tokens=8, **arguments):
    return step_cost(num_experts, width, expert_hidden, k, tokens, **arguments)


class AnalysisTest(BadInput):
    @parameterized.named_parameters(
        ("count_none", lambda: analysis.count(None), TypeError, "model=None. Pass a model"),
        ("count_layer", lambda: analysis.count(moe()), TypeError, "model=<SparseMoE"),
        (
            "count_unbuilt",
            lambda: analysis.count(keras.Sequential([keras.layers.Dense(3)], name="mine")),
            ValueError,
            "'mine', which is not. Begin it with a keras.Input",
        ),
        (
            "count_other_kinds",
            lambda: analysis.count(keras.Sequential([keras.Input((4, 4)), keras.layers.Conv1D(3, 1), moe()])),
            ValueError,
            "of type Conv1D",
        ),
        ("usage_none", lambda: analysis.measure_usage(None, []), TypeError, "model=None"),
        (
            "usage_unbuilt",
            lambda: analysis.measure_usage(keras.Sequential([moe()], name="mine"), []),
            ValueError,
            "'mine', which is not",
        ),
        ("usage_without", lambda: analysis.measure_usage(dense_model(), []), ValueError, "no SparseMoE.*<Dense"),
        ("usage_number", lambda: analysis.measure_usage(moe_model(), 3), TypeError, "'int'"),
        ("usage_width", lambda: analysis.measure_usage(moe_model(), [zeros(2, 5)]), ValueError, r"\(2, 5\)"),
        ("experts_zero", lambda: cost(0), ValueError, "num_experts=0"),
        ("experts_text", lambda: cost("4"), ValueError, "num_experts='4'"),
        ("pair_with_one_k", lambda: cost((4, 4)), ValueError, "must be a pair.*k=1"),
        ("one_level_with_pair", lambda: cost(k=(1, 1)), ValueError, "must be a pair.*num_experts=4"),
        ("k_above", lambda: cost(k=5), ValueError, "k=5, num_experts=4"),
        ("width_zero", lambda: cost(width=0), ValueError, "width=0"),
        ("hidden_none", lambda: cost(expert_hidden=None), ValueError, "expert_hidden=None"),
        ("tokens_zero", lambda: cost(tokens=0), ValueError, "tokens=0"),
        ("tokens_fraction", lambda: cost(tokens=8.5), ValueError, "tokens=8.5"),
        ("shards_zero", lambda: cost(shards=0), ValueError, "shards=0"),
        ("shards_uneven", lambda: cost(shards=3), ValueError, "divide evenly.*shards=3"),
        ("replicas_negative", lambda: cost(replicas=-2), ValueError, "replicas=-2"),
        ("dense_negative", lambda: cost(dense_parameters=-1), ValueError, "dense_parameters=-1"),
        ("bytes_zero", lambda: cost(number_bytes=0), ValueError, "number_bytes=0"),
        ("slots_negative", lambda: cost(slots=-1), ValueError, "slots=-1"),
        ("five_curves", lambda: plot_perplexity(dict.fromkeys("abcde", ([1], [2.0])), "a.png"), ValueError, "5 curves"),
        ("no_curve", lambda: plot_perplexity({}, "a.png"), ValueError, "0 curves"),
        ("no_points", lambda: plot_perplexity({"mine": ([], [])}, "a.png"), ValueError, "none for .'mine'"),
        ("unlike_points", lambda: plot_perplexity({"a": ([1, 2], [2.0])}, "a.png"), ValueError, r"\(2,\) and \(1,\)"),
        ("format", lambda: plot_load(np.ones(2), "a.no_such"), ValueError, "'no_such'"),
        (
            "load_matrix",
            lambda: plot_load(np.ones((1, 2)), "a.png"),
            ValueError,
            r"each expert.*\[\[1., 1.\]\]",
        ),
        ("load_empty", lambda: plot_load([], "a.png"), ValueError, r"load=array\(\[\]"),
        ("load_negative", lambda: plot_load([-1, 2], "a.png"), ValueError, r"\[-1, +2\]"),
        ("load_nan", lambda: plot_load([NAN, 2], "a.png"), ValueError, "nan"),
    )
    def test_calls(self, call, error, pattern):
        self.check(call, error, pattern)


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
        ("number_of_devices", lambda: on(4), ValueError, "devices=4"),
        ("numbers_of_devices", lambda: on([0, 1]), ValueError, "such as .CPU:0.*Received: 0"),
        ("no_such_device", lambda: on(["CPU:99"]), ValueError, r"'CPU:7'\].*devices=\['CPU:99'\]"),
        ("no_such_type", lambda: on(["ABACUS:0"]), ValueError, "'ABACUS'"),
        ("same_device", lambda: on(["CPU:0", "CPU:0"]), ValueError, r"different ones.*\['CPU:0', 'CPU:0'\]"),
        ("mixed_devices", lambda: on(["CPU:0", "GPU:0"]), ValueError, r"\['CPU:0', 'GPU:0'\]"),
        ("resolver", lambda: on(cluster_resolver="a:1"), TypeError, "cluster_resolver='a:1'. Leave it out"),
        ("address", lambda: distribute.Cluster(0, ("a",)), ValueError, "'host:port'. Received: 'a'"),
        ("process_text", lambda: distribute.Cluster("0", ("a:1",)), ValueError, "process_index='0'"),
        ("process_beyond", lambda: distribute.Cluster(1, ("a:1",)), ValueError, "process 1 of"),
        ("environment", lambda: launch.process_environment(3, ["a:1"]), ValueError, r"index=3, \['a:1'\]"),
        ("save_freq_zero", lambda: Resume("a", 0), ValueError, '"epoch" or a positive number.*save_freq=0'),
        ("save_freq_word", lambda: Resume("a", "batch"), ValueError, "save_freq='batch'"),
        ("save_freq_true", lambda: Resume("a", True), ValueError, "save_freq=True"),
        ("save_freq_fraction", lambda: Resume("a", 1.5), ValueError, "save_freq=1.5"),
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
        path = str(self.folder() / "checkpoint")
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

    def resume(self, model, state=None):
        directory = self.folder()
        if state is not None:
            (directory / "state.json").write_text(state)
        model.compile("sgd", "mse")
        model.fit(zeros(4, 4), zeros(4, 3), epochs=2, verbose=0, callbacks=[Resume(directory)])

    def test_resume_without_a_strategy(self):
        self.check(lambda: self.resume(dense_model()), ValueError, "Received: 'sequential.*BackupAndRestore")

    @parameterized.parameters("{", "3", '{"epoch": 1}')
    def test_resume_from_a_damaged_state(self, state):
        with on().scope():
            model = dense_model()
        self.check(lambda: self.resume(model, state), ValueError, f"is damaged.*Received: '{state}'")

    def test_resume_from_a_checkpoint_that_is_gone(self):
        with on().scope():
            model = dense_model()
        state = '{"checkpoint": "epoch-1-batch-0", "epoch": 1, "batch": 0}'
        self.check(lambda: self.resume(model, state), FileNotFoundError, "epoch-1-batch-0' *")


class SavedModelTest(BadInput):
    """`.keras` files that are damaged, or that were written to do harm."""

    def setUp(self):
        super().setUp()
        self.directory = self.folder()
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
        ("unknown_gate", {"gate": "switch"}, ValueError, "gate='switch'"),
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
