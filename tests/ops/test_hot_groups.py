import hypothesis
import hypothesis.strategies as st
import numpy as np

from tests.base import TestCase
from tf_moe.ops.hot_groups import cheapest_places

loads = st.lists(st.integers(0, 9) | st.integers(0, 3000), min_size=1, max_size=40)


class CheapestCapacityTest(TestCase):
    def rows(self, counts):
        """Rows that the block and what is beyond it have together."""
        counts = np.array(counts, "int32")
        capacity = int(cheapest_places(counts))
        self.assertBetween(capacity, 0, counts.max())
        return len(counts) * capacity + np.maximum(counts - capacity, 0).sum()

    @hypothesis.settings(max_examples=200, deadline=None, database=None)
    @hypothesis.given(loads)
    def test_rows_are_bounded_for_all_loads(self, counts):
        rows = self.rows(counts)
        self.assertGreaterEqual(rows, sum(counts))
        # A block is made only where it costs less than a loop over all groups that have items.
        self.assertLessEqual(rows, 1.7 * sum(counts) + 48 * len(counts))

    def test_hot_groups_make_no_others_larger(self):
        for counts in ([8192] + [0] * 63, [8192] * 4 + [0] * 60, [8192] + [384] * 63):
            self.assertLess(self.rows(counts), 1.1 * sum(counts))

    def test_even_loads_fill_the_block(self):
        self.assertEqual(self.rows([512] * 64), 64 * 512)
