"""The best one-to-one matching, for experts of two models whose numbers mean nothing."""

import numpy as np


def best_matching(gain: np.ndarray) -> np.ndarray:
    """Which column each row is matched with, so that the sum of the gains is highest.

    By shortest augmenting paths: rows are matched one after the other, each by a search in prices that keep what was
    matched optimal. At most n^3 steps, n^2 of them calls of NumPy: under a second for 256 rows.

    Args:
        gain: `(n, n)`, finite numbers.

    Returns:
        Int `(n,)`, the column of each row.

    Raises:
        ValueError: If gain is no square matrix of finite numbers.

    Example:

    >>> best_matching(np.array([[5, 4], [4, 0]]))
    array([1, 0])

    Reference: Jonker, Volgenant (1987), A shortest augmenting path algorithm for dense and sparse linear assignment
    problems.
    """
    gain = np.asarray(gain, "float64")
    if gain.ndim != 2 or gain.shape[0] != gain.shape[1] or not np.isfinite(gain).all():
        raise ValueError(f"gain must be a square matrix of finite numbers. Received: gain={gain!r}.")
    cost = gain.max(initial=0) - gain
    n = len(cost)
    row_price, column_price = np.zeros(n), np.zeros(n)
    row_of, column_of = np.full(n, -1), np.full(n, -1)
    for start in range(n):
        distance, came_from, done = np.full(n, np.inf), np.full(n, start), np.zeros(n, bool)
        row, reached = start, 0.0
        while True:
            through = reached + cost[row] - row_price[row] - column_price
            better = ~done & (through < distance)
            distance[better], came_from[better] = through[better], row
            column = int(np.argmin(np.where(done, np.inf, distance)))
            reached = distance[column]
            if row_of[column] < 0:
                break
            done[column] = True
            row = row_of[column]
        row_price[start] += reached
        row_price[row_of[done]] += reached - distance[done]
        column_price[done] += distance[done] - reached
        while True:  # back along the path, each row taking the column that was reached from it
            row = came_from[column]
            row_of[column], column_of[row], column = row, column, column_of[row]
            if row == start:
                break
    return column_of
