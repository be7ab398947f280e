import numpy as np

from tests.base import TestCase
from tests.mesh.helpers import Program, strategy_on
from tf_moe.mesh.device_groups import group_by
from tf_moe.mesh.windows import make_window

M, G, C, D = 13, 4, 3, 2


class WindowTest(TestCase):
    def test_against_loops(self):
        strategy = strategy_on(2)

        def function(index, values, start):
            relayout = strategy.shards.relayout_tokens
            groups = group_by(relayout(index), G)
            rows = relayout(values)
            window = make_window(groups, start, C)
            filled = window.fill(rows)
            return (*window, filled, window.read(2 * filled)), groups.order

        program = Program(strategy, function)
        for start in (0, 2, M):
            index = self.rng.choice(G + 1, (2, 1, M), p=[0.5, 0, 0.2, 0.1, 0.2]).astype("int32")  # G is no group
            rows = self.normal(2, 1, M, D)
            (row, place, filled, read), order = program(index, rows, np.int32(start))
            for n in range(2):
                in_order = index[n, 0][order[n, 0]]
                expected_row, expected_place = np.full((G, C), -1), np.full(M, -1)
                expected_filled, expected_read = np.zeros((G, C, D)), np.zeros((M, D))
                for g in range(G):
                    for c, m in enumerate(np.flatnonzero(in_order == g)[start : start + C]):
                        expected_row[g, c], expected_place[m] = m, g * C + c
                        expected_filled[g, c], expected_read[m] = rows[n, 0, m], 2 * rows[n, 0, m]
                self.assertAllEqual(row[n, 0], expected_row)
                self.assertAllEqual(place[n, 0], expected_place)
                self.assertAllEqual(filled[n, 0], expected_filled)
                self.assertAllEqual(read[n, 0], expected_read)
        self.assertEqual({tuple(specs[:2]) for specs in program.specs}, {("expert", "")})
        self.assertEqual(program.traces, 1)
