import hypothesis
import hypothesis.strategies as st
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.ops import hot_groups
from tf_moe.ops.hot_groups import cheapest_places

loads = st.lists(st.integers(0, 9) | st.integers(0, 3000), min_size=1, max_size=40)


class CheapestPlacesTest(TestCase):
    def test_by_hand(self):
        for counts, expected in (
            ([5, 5, 5], 5),  # even: the block holds all
            ([7], 7),
            ([0, 0, 0], 0),
            ([0, 90, 0, 0, 0], 0),  # one turn of the loop against a block of five groups
            # Mean 100, largest 130. A block of 100 places costs 10 * 132, and 30 * 1.7 + 80 for what is beyond: 1451.
            # One of 113 costs 10 * 145 + 17 * 1.7 + 80 = 1559, one that holds all 10 * 162.
            ([130, 97, 97, 97, 97, 97, 97, 96, 96, 96], 100),
            # Mean 8, largest 10: 4 * 42 for all, against 4 * 40 + 2 * 1.7 + 80.
            ([10, 8, 7, 7], 10),
        ):
            with self.subTest(counts=counts):
                capacity = cheapest_places(tf.constant(counts))
                self.assertEqual((int(capacity), capacity.dtype), (expected, tf.int32))

    def test_costs_no_more_than_a_block_or_a_loop_alone(self):
        def cost(counts, capacity):
            beyond = np.maximum(counts - capacity, 0)
            block = len(counts) * (capacity + hot_groups._GROUP) if capacity else 0
            turns = np.sum(beyond > 0) * (hot_groups._GROUP + hot_groups._TURN)
            return block + hot_groups._ROW_OF_LOOP * beyond.sum() + turns

        for scale in (3, 40, 40, 400, 400):
            counts = np.sort(self.rng.geometric(1 / scale, self.rng.integers(1, 20)))
            capacity = int(cheapest_places(tf.constant(counts, tf.int32)))
            self.assertBetween(capacity, 0, counts.max())
            for other in (0, int(np.ceil(counts.mean())), counts.max()):
                self.assertLessEqual(cost(counts, capacity), cost(counts, other) * 1.0001, (counts, capacity, other))

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
