"""The cost model against numbers worked by hand."""

import math

from tests.base import TestCase
from tests.processes import run_python
from tf_moe.analysis import count
from tf_moe.analysis.scaling import format_costs, step_cost
from tf_moe.layers import SparseMoE
from tf_moe.models import language_model


class StepCostTest(TestCase):
    def test_flat_by_hand(self):
        """16 experts 8 -> 12 -> 8, k = 4, 256 tokens, 4 shards."""
        cost = step_cost(16, 8, 12, 4, tokens=256, shards=4, dense_parameters=100, table_parameters=50, slots=3)
        # 64 tokens a device make 256 rows, 16 for each expert: places for 16 + 2 * 4 = 24; a turn has 8.
        self.assertEqual((cost.rows, cost.block_rows), (256, 16 * 24))
        self.assertEqual(cost.padding, 1.5)
        self.assertEqual(cost.expert_multiply_adds, 2 * 8 * 12 * 384)
        self.assertEqual(cost.gate_multiply_adds, 2 * 8 * 16 * 64)
        self.assertEqual(cost.sum_multiply_adds, 2 * 16 * 256)
        self.assertEqual(cost.dense_multiply_adds, 100 * 64)
        self.assertEqual(cost.training_multiply_adds, 3 * (73728 + 16384 + 6400) + 4096 + 2 * 4096)
        # Three quarters of the block leave the device, 4 times in a step, 8 numbers of 4 bytes in a row.
        self.assertEqual(cost.exchange_bytes, 4 * 384 * 8 * 4 * 3 / 4)
        self.assertEqual(cost.ideal_exchange_bytes, 4 * 256 * 8 * 4 * 3 / 4)
        self.assertEqual(cost.turn_exchange_bytes, 5 * 16 * 8 * 8 * 4 * 3 / 4)
        # Gate 256 and 150 others; the experts' gradients stay where they are.
        self.assertEqual(cost.reduce_bytes, 406 * 4 * 2 * 3 / 4)
        self.assertEqual(cost.weight_bytes, 4 * (406 + 4 * 2 * 8 * 12))
        self.assertEqual(cost.slot_bytes, 3 * cost.weight_bytes)
        self.assertEqual(cost.block_bytes, 4 * 384 * (8 + 12))

    def test_hierarchical_by_hand(self):
        """(4, 4) experts, k = (2, 2), 256 tokens, 2 shards: 128 tokens a device, 256 rows of 4 groups."""
        cost = step_cost((4, 4), 8, 12, (2, 2), tokens=256, shards=2)
        places = 64 + 16  # of a group: its mean and two standard deviations
        self.assertEqual(cost.gate_multiply_adds, 2 * 8 * 4 * 128 + 2 * 8 * 4 * 4 * places)
        self.assertEqual(cost.sum_multiply_adds, 4 * 16 * 128 + 4 * 16 * 128 + 2 * 16 * 128)
        self.assertEqual(cost.reduce_bytes, 2 * 8 * (4 + 16) * 4)
        self.assertEqual(cost.rows, 512)

    def test_replicas(self):
        """Each shard twice: its experts' gradients are summed too, and the others' over two pieces of the batch."""
        cost = step_cost(16, 8, 12, 4, tokens=256, shards=2, replicas=2)
        experts, gate = 16 * 2 * 8 * 12 // 2, 2 * 8 * 16
        self.assertEqual(cost.reduce_bytes, 4 * (experts + gate))
        self.assertEqual(cost.exchange_bytes, 4 * 384 * 8 * 4 / 2)
        self.assertEqual(cost.gate_multiply_adds, gate * 128)

    def test_half_precision_and_recompute(self):
        full, half = (step_cost(16, 8, 12, 4, tokens=256, shards=2, number_bytes=b) for b in (4, 2))
        self.assertEqual(half.exchange_bytes, full.exchange_bytes / 2)
        self.assertEqual(half.reduce_bytes, full.reduce_bytes)
        self.assertEqual(half.arithmetic_per_number, full.arithmetic_per_number)
        again = step_cost(16, 8, 12, 4, tokens=256, shards=2, recompute=True)
        self.assertEqual(again.training_multiply_adds - full.training_multiply_adds, full.expert_multiply_adds)
        self.assertEqual(again.block_bytes / full.block_bytes, 8 / 20)

    def test_the_ratio_is_that_of_the_hidden_width(self):
        for hidden in (16, 1024):
            self.assertEqual(
                step_cost(16, 8, hidden, 4, tokens=256, shards=4).arithmetic_per_number, 1.5 * hidden * 4 / 3
            )
        self.assertEqual(step_cost(16, 8, 12, 4, tokens=256).arithmetic_per_number, math.inf)

    def test_more_devices_with_more_tokens(self):
        """Section 3.1: with as many tokens a device, more devices fill the experts better; arithmetic stays."""
        costs = [step_cost(16 * d, 8, 12, 4, tokens=4096 * d, shards=d) for d in (1, 2, 4)]
        self.assertLen({cost.rows for cost in costs}, 1)
        self.assertLen({cost.weight_bytes - 4 * 2 * 8 * 16 * d for cost, d in zip(costs, (1, 2, 4), strict=True)}, 1)

    def test_it_agrees_with_the_count_of_layers(self):
        for num_experts, k in ((16, 4), ((4, 4), (2, 2))):
            model = language_model(10, [SparseMoE(num_experts, 12, k=k)], width=8)
            counts = count(model)
            cost = step_cost(num_experts, 8, 12, k, tokens=2**20, dense_parameters=2 * 4 * 8 * 16)
            gate = 2 * 8 * (16 if k == 4 else 4 + 2 * 4)  # by the paper's rule only the chosen groups' gates count
            self.assertEqual(counts.multiply_adds, gate + 2 * 8 * 12 * 4 + cost.dense_multiply_adds / 2**20)
            self.assertEqual(4 * counts.parameters, cost.weight_bytes)
            self.assertAllClose(cost.gate_multiply_adds / 2**20, gate, rtol=0.01)
            self.assertAllClose(cost.padding, 1, atol=0.01)

    def test_uneven(self):
        for shards, tokens in ((3, 255), (2, 255)):
            with self.assertRaisesRegex(ValueError, f"shards={shards}, tokens={tokens}"):
                step_cost(16, 8, 12, 4, tokens=tokens, shards=shards)

    def test_tables(self):
        cost = step_cost(16, 8, 12, 4, tokens=256, shards=4)
        self.assertIn("| 384 (1.50 a row) |", format_costs({"four": cost}))
        run = run_python("-W", "error::RuntimeWarning:runpy", "-m", "tf_moe.analysis.scaling")
        self.assertIn("| 1,048,576 (13.98 a row) |", run.stdout)
