"""The best one-to-one matching, for experts of two models whose numbers mean nothing."""

import numpy as np


def best_matching(gain: np.ndarray) -> np.ndarray:
    """Which column each row is matched with, so that the sum of the gains is highest.

    Args:
        gain: `(n, n)`, finite numbers.

    Returns:
        Int `(n,)`, the column of each row.

    Raises:
        ValueError: If gain is no square matrix of finite numbers.
        ImportError: If SciPy is not installed.

    Example:

    >>> best_matching(np.array([[5, 4], [4, 0]]))
    array([1, 0])
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("Matching experts takes the package SciPy: pip install 'tf_moe[analysis]'.") from error
    gain = np.asarray(gain, "float64")
    if gain.ndim != 2 or gain.shape[0] != gain.shape[1] or not np.isfinite(gain).all():
        raise ValueError(f"gain must be a square matrix of finite numbers. Received: gain={gain!r}.")
    return linear_sum_assignment(gain, maximize=True)[1]
