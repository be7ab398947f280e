"""The arithmetic of a gate by the paper's counting rule."""

import math

from tf_moe.gates.gate import Gate


def multiply_adds(gate: Gate) -> int:
    """Multiply-adds of a built gate for one token: those of its logits.

    Each matrix once, W_noise too; of several gates one; on two levels the first one's whole, and of the second's only
    those of the chosen groups.

    Reference: the column ops/timestep of table 7 of Shazeer et al. (2017).
    """
    size = sum(math.prod(w.shape) for w in gate.weights if len(w.shape) >= 2) // (gate.num_gates or 1)
    if not isinstance(gate.num_experts, tuple):
        return size
    groups, per_group = gate.num_experts
    first = size // (1 + per_group)
    return first + (size - first) * gate.k[0] // groups
