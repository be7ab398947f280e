import numpy as np
from absl.testing import parameterized

from tests.base import TestCase
from tests.mesh.helpers import Program, strategy_on
from tf_moe.mesh.device_groups import group_by, sum_by_group

M, G = 11, 6


class GroupsTest(TestCase):
    @parameterized.named_parameters(("two", (2, 1)), ("two_by_two", (4, 2)))
    def test_each_device_sorts_its_own(self, mesh):
        strategy = strategy_on(*mesh)
        shards = strategy.shards
        devices = (shards.shards, shards.replicas)

        def function(index, priority):
            index, priority = shards.relayout_tokens(index), shards.relayout_tokens(priority)
            plain, sorted_ = group_by(index, G), group_by(index, G, priority)
            return (*plain, plain.starts), (*sorted_, sorted_.starts)

        program = Program(strategy, function)
        for rare in (False, True):  # a third of the items, or all but a few, are of no group
            index = self.rng.integers(0, G, (*devices, M))
            index[self.rng.random(index.shape) < (0.9 if rare else 0.3)] = G
            priority = self.rng.choice([0.0, 0.25, 0.5, 1.0], index.shape).astype("float32")
            results = program(index.astype("int32"), priority)
            keys = np.zeros_like(priority), -priority
            for (order, place, group, counts, starts), key in zip(results, keys, strict=True):
                for n in np.ndindex(*devices):
                    expected = sorted(range(M), key=lambda m: (index[n][m], key[n][m], m))  # noqa: B023
                    self.assertAllEqual(order[n], expected)
                    self.assertAllEqual(place[n][order[n]], range(M))
                    self.assertAllEqual(group[n], index[n][expected])
                    self.assertAllEqual(counts[n], np.bincount(index[n], minlength=G + 1)[:G])
                    self.assertAllEqual(starts[n], np.cumsum([0, *counts[n][:-1]]))
        replica = "replica" if mesh[1] > 1 else ""
        self.assertEqual(program.specs, [["expert", replica, ""]] * 10)  # nothing was collected for it
        self.assertEqual(program.traces, 1)

    def test_sums(self):
        strategy = strategy_on(2)
        for groups in (1, 2, 9, 10):

            def function(values, index, groups=groups):
                relayout = strategy.shards.relayout_tokens
                device = sum_by_group(relayout(values), relayout(index), groups, "nrm->nr")
                return device, sum_by_group(values[:, 0], index[:, 0], groups, "tk->")

            values = self.normal(2, 1, M)
            index = self.rng.integers(0, groups + 1, values.shape).astype("int32")  # the last is of no group
            device, total = Program(strategy, function)(values, index)
            hits = index[..., None] == np.arange(groups)
            expected = np.sum(values[..., None].astype("float64") * hits, axis=2)
            self.assertAllClose(device, expected, atol=1e-5)
            self.assertAllClose(total, expected.sum((0, 1)), atol=1e-5)
