import math

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tests.mesh.helpers import Program, strategy_on
from tf_moe.mesh.device_groups import group_by
from tf_moe.mesh.move import Exchange, Stay
from tf_moe.ops.grouped_mesh import apply_grouped_mesh, sizes

M, G, D, H, O = 60, 4, 3, 5, 2  # noqa: E741
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def two_layers(x, first, bias, second):
    return tf.matmul(tf.tanh(tf.matmul(x, first) + tf.expand_dims(bias, 1)), second)


def two_layers_staying(x, first, bias, second):
    hidden = tf.einsum("nrgcd,gdh->nrgch", x, first) + tf.expand_dims(bias, 1)
    return tf.einsum("nrgch,gho->nrgco", tf.tanh(hidden), second)


def by_rows(rows, group, weights, d_output, capacity=None):
    """Output, and gradients to rows and weights, a row at a time in float64."""
    rows, d_output = rows.astype("float64"), d_output.astype("float64")
    first, bias, second = weights = [w.astype("float64") for w in weights]
    d_first, d_bias, d_second = (np.zeros_like(w) for w in weights)
    output, d_rows = np.zeros((*rows.shape[:3], O)), np.zeros_like(rows)
    for device in np.ndindex(rows.shape[:2]):
        seen = [0] * (G + 1)
        for m, g in enumerate(group[device]):
            seen[g] += 1
            if g == G or (capacity and seen[g] > capacity):
                continue
            x, dy = rows[device][m], d_output[device][m]
            hidden = np.tanh(x @ first[g] + bias[g])
            output[device][m] = hidden @ second[g]
            d_hidden = (second[g] @ dy) * (1 - hidden**2)
            d_second[g] += np.outer(hidden, dy)
            d_bias[g] += d_hidden
            d_first[g] += np.outer(x, d_hidden)
            d_rows[device][m] = first[g] @ d_hidden
    return output, d_rows, d_first, d_bias, d_second


class GroupedMeshTest(TestCase):
    def loads(self, devices):
        """Sorted groups of M rows on each device, G being no group, by the name of the load."""
        fresh = np.stack(
            [self.rng.choice(G + 1, M, p=self.rng.dirichlet(np.ones(G + 1))) for _ in range(math.prod(devices))]
        )
        loads = {
            "even": np.tile(np.arange(M) % G, (*devices, 1)),
            "just fits": np.tile(np.repeat(range(G + 1), [24, 24, 0, 0, 12]), (*devices, 1)),
            "one row more": np.tile(np.repeat(range(G + 1), [25, 24, 0, 0, 11]), (*devices, 1)),
            "one group has all": np.full((*devices, M), 2),
            "one group has all of one device": np.full((*devices, M), G),
            "no group has any": np.full((*devices, M), G),
            "fresh": fresh.reshape(*devices, M),
        }
        loads["one group has all of one device"][0, 0] = 1
        return {name: np.sort(groups, axis=-1).astype("int32") for name, groups in loads.items()}

    def check(self, mesh, in_one_piece=False, stay=False, capacity=None, recompute=False):
        strategy = strategy_on(*mesh)
        shards = strategy.shards
        move, function = (Stay(), two_layers_staying) if stay else (Exchange(shards), two_layers)

        def run(rows, group, d_output, *weights):
            rows, group, d_output = (shards.relayout_tokens(x) for x in (rows, group, d_output))
            weights = [shards.relayout(w, {} if stay else {0: "expert"}) for w in weights]
            with tf.GradientTape() as tape:
                tape.watch([rows, *weights])
                groups = group_by(group, G)
                output = apply_grouped_mesh(function, rows, groups, weights, move, capacity, recompute)
            return output, *tape.gradient(output, [rows, *weights], d_output)

        program = Program(strategy, run)
        devices = (1, 1) if in_one_piece else (shards.shards, shards.replicas)
        weights = [self.normal(G, D, H), self.normal(G, H), self.normal(G, H, O)]
        for name, group in self.loads(devices).items():
            rows, d_output = self.normal(*devices, M, D), self.normal(*devices, M, O)
            expected = by_rows(rows, group, weights, d_output, capacity)
            with self.subTest(name):
                for got, want in zip(program(rows, group, d_output, *weights), expected, strict=True):
                    self.assertAllClose(got, want, **CLOSE)
        self.assertEqual(program.traces, 1)  # one program for all loads
        split = [] if in_one_piece else ["expert", "replica"][: 1 + (mesh[1] > 1)]
        for specs in program.specs[:2]:
            self.assertEqual([spec for spec in specs if spec], split)
        for specs in program.specs[2:]:
            self.assertEqual(specs[0], "" if stay else "expert")

    @parameterized.named_parameters(("two", (2, 1)), ("two_by_two", (4, 2)))
    def test_exchange(self, mesh):
        self.check(mesh)

    def test_exchange_in_one_piece(self):
        self.check((2, 1), in_one_piece=True)

    def test_exchange_recomputed(self):
        self.check((2, 1), recompute=True)

    @parameterized.parameters(7, M)
    def test_exchange_of_a_capacity(self, capacity):
        self.check((2, 1), capacity=capacity)

    def test_stay(self):
        self.check((4, 2), stay=True)

    def test_stay_in_one_piece(self):
        self.check((2, 1), in_one_piece=True, stay=True)

    def test_bfloat16_of_many_rounds(self):
        """Parts of one sign, all alike: in bfloat16 their sum would stop growing at 256 of them."""
        strategy, size, num_groups = strategy_on(2), 2816, 128  # a round is 8 rows of a device

        def run(rows, group, weight, d_output):
            rows, group, d_output = (strategy.shards.relayout_tokens(x) for x in (rows, group, d_output))
            weight = strategy.shards.relayout(weight, {0: "expert"})
            with tf.GradientTape() as tape:
                tape.watch(weight)
                groups = group_by(group, num_groups)
                output = apply_grouped_mesh(tf.matmul, rows, groups, [weight], Exchange(strategy.shards))
            return tape.gradient(output, weight, d_output)

        rows, weight, d_output = (
            tf.cast(x, "bfloat16")
            for x in (
                np.tile(self.normal(D), (2, 1, size, 1)),
                self.normal(num_groups, D, O),
                np.tile(self.normal(O), (2, 1, size, 1)),
            )
        )
        group = np.full((2, 1, size), 3, "int32")
        got = Program(strategy, run)(rows, group, weight, d_output)
        want = np.zeros((num_groups, D, O))
        want[3] = np.einsum("nrmd,nrmo->do", *(tf.cast(x, "float32") for x in (rows, d_output)))
        self.assertAllClose(got.astype("float32"), want, rtol=2**-6)

    def test_recompute_keeps_nothing_of_the_block(self):
        calls = []

        def counted(x, weight):
            calls.append(x.shape)
            return tf.matmul(x, weight)

        strategy = strategy_on(2)
        for recompute, expected in ((False, 1), (True, 2)):

            def run(rows, group, weight, recompute=recompute):
                rows, weight = strategy.shards.relayout_tokens(rows), strategy.shards.relayout(weight, {0: "expert"})
                groups = group_by(strategy.shards.relayout_tokens(group), G)
                with tf.GradientTape() as tape:
                    tape.watch(weight)
                    output = apply_grouped_mesh(
                        counted, rows, groups, [weight], Exchange(strategy.shards), capacity=M, recompute=recompute
                    )
                return tape.gradient(output, weight)

            calls.clear()
            rows, weight = self.normal(2, 1, M, D), self.normal(G, D, O)
            gradient = Program(strategy, run)(rows, np.zeros((2, 1, M), "int32"), weight)
            self.assertEqual(calls, [(G, 2 * M, D)] * expected)
            # The gradient of a plain sum, a constant, finds its way too.
            self.assertAllClose(gradient[0], np.repeat(rows.sum((0, 1, 2))[:, None], O, 1), **CLOSE)
            self.assertAllEqual(gradient[1:], np.zeros((G - 1, D, O)))


class SizesTest(TestCase):
    def test_by_hand(self):
        for rows, groups, expected in (
            (60, 4, (24, 8)),  # a mean of 15 and twice its square root
            (1600, 4, (440, 112)),
            (64, 64, (8, 8)),
            (1000, 1, (1000, 256)),  # 1063, but there are just 1000
            (3, 2, (3, 3)),
            (1, 8, (1, 1)),
        ):
            self.assertEqual(sizes(rows, groups), expected, (rows, groups))

    def test_even_loads_fit(self):
        for rows, groups in self.rng.integers(1, 3000, (50, 2)).tolist():
            block, a_round = sizes(rows, groups)
            self.assertGreaterEqual(block * groups, rows)
            self.assertBetween(a_round, 1, block)
            self.assertTrue(block % 8 == 0 or block == rows)
