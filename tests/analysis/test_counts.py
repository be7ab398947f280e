"""The counting rule reproduces cells of the paper's table 7."""

import math

import keras
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.analysis import Counts, count
from tf_moe.gates import Hierarchical, NoisyTopK
from tf_moe.layers import LSTM, SparseMoE
from tf_moe.models import dense_twin, language_model


class CountTest(TestCase):
    @parameterized.named_parameters(
        # millions of parameters and of multiply-adds, as printed there (MoE-4 and MoE-32 count as MoE-256 does)
        ("moe_4", 4, 4, 8.4, 8.4),
        ("moe_32", 32, 4, 37.8, 8.4),
        ("moe_256", 256, 4, 272.9, 8.6),
        ("moe_256_h", (16, 16), (2, 2), 272.9, 8.4),
    )
    def test_table_7(self, num_experts, k, parameters, operations):
        counts = count(language_model(10, [SparseMoE(num_experts, 1024, k=k)], width=512))
        self.assertAllClose(counts.parameters / 1e6, parameters, atol=0.06)
        self.assertAllClose(counts.multiply_adds / 1e6, operations, atol=0.06)

    def test_projected_lstm(self):
        """LSTM-2048-512 of table 7, 9.4 million both ways: two of them would be twice as much."""
        model = keras.Sequential([keras.Input((None, 512)), LSTM(2048, projection=512), keras.layers.Dense(10)])
        self.assertEqual(count(model), Counts(4 * 2048 * 1024 + 2048 * 512, 4 * 2048 * 1024 + 2048 * 512))

    @parameterized.parameters(
        {"num_experts": 8, "k": 2},
        {"num_experts": (4, 2), "k": (2, 1)},
        {"num_experts": 1, "k": 1, "shared_expert_hidden": 5},
        {"num_experts": 8, "k": 2, "gate": "strictly_balanced"},
        {"num_experts": 8, "k": 1, "gate": "switch"},
        {"num_experts": 8, "k": 2, "gate": "hash"},
        {"num_experts": 4, "k": None, "gate": "dense_softmax"},
        {"num_experts": (4, 2), "k": (2, 1), "gate": Hierarchical((4, 2), (2, 1), noisy=False)},
        {"num_experts": 8, "k": 2, "gate": NoisyTopK(8, 2, noisy=False)},
    )
    def test_the_dense_twin_costs_the_same(self, **arguments):
        moe = SparseMoE(expert_hidden=24, **arguments)
        twin = count(language_model(10, [dense_twin(moe, 16)], width=16))  # of a layer that is not built
        ours = count(language_model(10, [moe], width=16))
        self.assertEqual(ours.multiply_adds, twin.multiply_adds)
        self.assertEqual(twin.multiply_adds, twin.parameters)

    def test_the_dense_twin_of_an_odd_number_of_logits(self):
        """Half a hidden unit would do for the last, and there is none."""
        moe = SparseMoE(5, 24, k=2, gate="bias_balanced")
        ours, twin = (count(language_model(10, [layer], width=16)) for layer in (moe, dense_twin(moe, 16)))
        self.assertEqual(twin.multiply_adds - ours.multiply_adds, 16)

    def test_a_shared_expert_is_one_for_all(self):
        plain, more = (
            count(language_model(10, [SparseMoE(4, 8, k=2, shared_expert_hidden=n)], width=6)) for n in (None, 5)
        )
        self.assertEqual(more, Counts(plain.parameters + 60, plain.multiply_adds + 60))

    def test_a_token_has_one_of_several_gates(self):
        for gate in (NoisyTopK(4, 2, num_gates=3), Hierarchical((2, 3), (1, 2), num_gates=3)):
            one = SparseMoE(gate.num_experts, 8, k=gate.k)
            inputs, ids = keras.Input((6,)), keras.Input((), dtype="int32")
            moe = SparseMoE(gate.num_experts, 8, k=gate.k, gate=gate)
            outputs = keras.layers.Dense(2)(moe(inputs, gate_id=ids))
            several = count(keras.Model([inputs, ids], outputs))
            single = count(keras.Sequential([inputs, one, keras.layers.Dense(2)]))
            gate_size = sum(math.prod(w.shape) for w in one.gate.weights)
            self.assertEqual(several, Counts(single.parameters + 2 * gate_size, single.multiply_adds))

    def test_biases_do_not_count(self):
        with_biases, without = (
            count(language_model(10, [SparseMoE(4, 8, k=2, use_bias=b)], width=6)) for b in (True, False)
        )
        self.assertEqual(with_biases, without)

    def test_unknown_layer(self):
        model = keras.Sequential([keras.Input((9, 4)), keras.layers.Conv1D(3, 2), keras.layers.Dense(2)])
        with self.assertRaisesRegex(ValueError, "Conv1D"):
            count(model)
