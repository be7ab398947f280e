"""Which experts are alike."""

import numpy as np


def group_alike(weights: list[np.ndarray], loads: np.ndarray, num_groups: int) -> list[list[int]]:
    """Put experts into groups, so that replacing each by its group's mean changes the weights little.

    Ward's method: from every expert by itself, join the two groups whose joining adds least to the sum, over experts,
    of load times squared distance to the group's mean. So what is alike is joined first, and what is rarely used.

    Args:
        weights: Arrays `(E, ...)`, what the experts are compared by.
        loads: `(E,)`, how much each expert counts; at least one is over zero.
        num_groups: Number of groups, 1 to E.

    Returns:
        The experts of each group, in order; groups in the order of their first expert.
    """
    num_experts = len(loads)
    # A little for all: experts without load then join what they are most like, and not just any.
    mass = np.asarray(loads, np.float64) / np.mean(loads) + 1e-6
    distance = _squared_distances(weights)
    groups = [[e] for e in range(num_experts)]
    alive = np.ones(num_experts, bool)
    for _ in range(num_experts - num_groups):
        cost = distance * (np.outer(mass, mass) / np.add.outer(mass, mass))
        cost[~alive], cost[:, ~alive] = np.inf, np.inf
        np.fill_diagonal(cost, np.inf)
        a, b = sorted(np.unravel_index(np.argmin(cost), cost.shape))
        # Distances of the new mean follow from those of the two (Lance and Williams).
        total = mass[a] + mass[b]
        to_mean = (mass[a] * distance[a] + mass[b] * distance[b]) / total
        distance[a] = distance[:, a] = np.maximum(to_mean - mass[a] * mass[b] / total**2 * distance[a, b], 0)
        mass[a], alive[b] = total, False
        groups[a] += groups[b]
    return [sorted(group) for group, is_alive in zip(groups, alive, strict=True) if is_alive]


def _squared_distances(weights):
    """Between all pairs of experts, `(E, E)`, summed over all weights."""
    num_experts = len(weights[0])
    products = np.zeros((num_experts, num_experts))
    for weight in weights:
        flat = np.reshape(weight, (num_experts, -1)).astype(np.float32)
        flat = flat - flat.mean(axis=0)  # what all have in common would drown small differences
        products += flat @ flat.T
    norms = np.diag(products)
    return np.maximum(np.add.outer(norms, norms) - 2 * products, 0)
