"""The named translation models against the paper's tables, and against what they build."""

import dataclasses

from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.analysis import count
from tf_moe.gates import GATES
from tf_moe.models import TRANSLATORS

# Tables 2 to 5 of the paper: ops/timestep in millions, and parameters in billions, which there include embedding and
# softmax.
CELLS = {"MoE-2048-h": (85, 8.7), "multilingual-512": (102, 8.7)}


class TranslatorsTest(TestCase):
    @parameterized.parameters(*CELLS.items())
    def test_are_near_the_tables(self, name, cells):
        """Within three parts in a hundred: the paper does not say what it counts of attention and both directions."""
        network = TRANSLATORS[name]
        self.assertAllClose(network.ops_per_timestep / 1e6, cells[0], rtol=0.03)
        self.assertAllClose((network.parameters + 2 * 32_000 * 512) / 1e9, cells[1], atol=0.05)

    def test_every_network_is_under_its_name(self):
        self.assertEqual(list(TRANSLATORS), [network.name for network in TRANSLATORS.values()])

    @parameterized.parameters(*TRANSLATORS)
    def test_counts_are_those_of_the_model(self, name):
        network = TRANSLATORS[name].scaled(8)
        if network.parameters > 1e6:
            network = network.scaled(4)
        self.assertEqual(count(network.build(10)), (network.parameters, network.ops_per_timestep))
        twin = network.dense_twin()
        self.assertEqual(twin.name, f"{name}-dense")
        self.assertEqual(count(twin.build(10)), (twin.parameters, network.ops_per_timestep))

    @parameterized.parameters(*(set(GATES) - {"expert_choice", "hierarchical"}))  # the first cannot be in a decoder
    def test_counts_with_every_gate_of_one_level(self, gate):
        k = {"switch": 1, "dense_softmax": 8}.get(gate, 2)
        network = dataclasses.replace(TRANSLATORS["multilingual-512"].scaled(8), gate=gate, num_experts=8, k=k)
        self.assertEqual(count(network.build(10)), (network.parameters, network.ops_per_timestep))

    def test_scaled(self):
        network = TRANSLATORS["multilingual-512"].scaled(64)
        self.assertEqual((network.width, network.lstm_units, network.expert_hidden), (64, 256, 1024))
        self.assertEqual(network.scaled(512), TRANSLATORS["multilingual-512"])
        self.assertEqual(network.dense_twin().ops_per_timestep, network.ops_per_timestep)
        with self.assertRaisesRegex(ValueError, "Received: width=0"):
            network.scaled(0)
        with self.assertRaisesRegex(ValueError, "has no mixture"):
            network.dense_twin().dense_twin()

    def test_build(self):
        model = TRANSLATORS["MoE-512-h"].scaled(4).build(11, start=5, dropout=0.1, moe={"seed": 3})
        self.assertEqual((model.start, model.dropout), (5, 0.1))
        moe = model.decoder_moe
        self.assertEqual((moe.num_experts, moe.k, moe.seed, moe.importance_weight), ((16, 32), (2, 2), 3, 0.01))
        self.assertEqual(moe.output_activation.__name__, "sigmoid")
