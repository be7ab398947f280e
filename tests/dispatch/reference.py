"""Slow dispatchers: buffers filled an assignment at a time."""

import numpy as np


def fill_buffers(expert_index, combine_weights, num_experts, capacity=None, drop_by="position"):
    """The assignments t * K + k in each expert's buffer, in order, and how many found no place."""
    T, K = expert_index.shape
    buffers, dropped = [[] for _ in range(num_experts)], 0
    for t in range(T):
        for k in range(K):
            if combine_weights[t, k] > 0:
                buffers[expert_index[t, k]].append(t * K + k)
    for buffer in buffers:
        if drop_by == "weight":
            buffer.sort(key=lambda a: (-combine_weights[a // K, a % K], a))
        while capacity is not None and len(buffer) > capacity:
            buffer.pop()
            dropped += 1
    return buffers, dropped


def random_routing(rng, T, K, E):
    """Different experts for a token, and weights of which a quarter is zero and many are equal."""
    index = np.stack([rng.permutation(E)[:K] for _ in range(T)]) if T else np.zeros((0, K))
    return index.astype("int32"), rng.choice([0.0, 0.25, 0.5, 1.0], (T, K)).astype("float32")
