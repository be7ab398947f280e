"""Every gate in `GATES` with its formula in float64: the cases of `test_every_gate.py`. A new gate needs one here."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tests import references
from tf_moe.gates.hash import assignments
from tf_moe.ops.ties import code_tokens

T, D = 12, 3
BIAS = np.array([0.3, 0.0, -0.2, 0.1])  # of BiasBalanced


class Case(NamedTuple):
    """A gate, and its formula in float64.

    Attributes:
        values: From tokens (T, D), the gate's weights by name, its noises and whether it trains to gate values (T, E).
        num_experts: As the gate has it.
        k: As the gate has it.
        noises: Shapes of what the gate draws in training for T tokens.
        logits: From tokens, weights, noises and gate values in training to the logits that its z-loss is about, a list
            of matrices; None for a gate without.
        options: Arguments of the gate that are not their defaults.
        prepare: Gives a gate, with a generator, weights for which random ones of a kernel's size are no good.
    """

    values: Callable
    num_experts: int | tuple[int, int] = 4
    k: int | tuple[int, int] | None = 2
    noises: tuple = ()
    logits: Callable | None = lambda x, w, noises, gates: [x @ w["kernel"]]
    options: dict = {}
    prepare: Callable = lambda gate, rng: None

    @property
    def total(self):
        return int(np.prod(self.num_experts))

    def with_z_loss(self, weight=0.1):
        """The options, and a z-loss where the gate has one."""
        return {**self.options, **({"z_loss_weight": weight} if self.logits else {})}


def scores(x, w):
    return np.array([references.softmax(h) for h in x @ w["kernel"]])


def share(x, k, num_experts):
    """m, the tokens of an expert that chooses them."""
    return round(k * len(x) / num_experts)


def noisy_top_k(x, w, noises, training):
    noise = noises[0] if training else np.zeros((len(x), 4))
    return references.noisy_top_k(x, w["kernel"], w["noise_kernel"], noise, 2)[0]


def hierarchical(x, w, noises, training):
    if not training:
        noises = np.zeros((len(x), 3)), np.zeros((2 * len(x), 4))
    noises = noises[0], noises[1].reshape(-1, 2, 4)
    weights = (w[name] for name in ("kernel", "noise_kernel", "group_kernel", "group_noise_kernel"))
    return references.hierarchical(x, *weights, noises, (2, 2))[0]


def logits_of_levels(x, w, noises, gates):
    chosen = gates.reshape(-1, 3, 4).sum(axis=2) > 0
    return [x @ w["kernel"], np.array([x[t] @ w["group_kernel"][group] for t, group in np.argwhere(chosen)])]


def strictly_balanced(x, w, noises, training):
    s = scores(x, w)
    mask = references.batchwise_mask(s, share(x, 2, 4)) if training else s > w["thresholds"] / 4
    return references.masked_gates(s, mask)


def set_thresholds(gate, rng):
    gate.thresholds.assign([0.01, *rng.uniform(0.5, 1.5, 3)])  # the first lets too many pass, and learns


def switch(x, w, noises, training):
    return references.switch(logits_with_jitter(x, w, noises)[0] if training else x @ w["kernel"])[0]


def logits_with_jitter(x, w, noises, gates=None):
    uniform = np.vectorize(references.normal_cdf)(noises[0])
    return [x * (1 + 0.2 * (2 * uniform - 1)) @ w["kernel"]]


def dense_softmax(x, w, noises, training):
    return scores(x, w)


def expert_choice(x, w, noises, training):
    return scores(x, w) * references.batchwise_mask(scores(x, w), share(x, 2, 4))


def sinkhorn(x, w, noises, training):
    logits = x @ w["kernel"]
    balanced = references.sinkhorn(np.exp(logits), 4) if training else logits
    chosen = np.array([np.isin(np.arange(4), references.top_k_set(row, 2)) for row in balanced])
    return chosen / (1 + np.exp(-logits))


def bias_balanced(x, w, noises, training):
    return references.bias_balanced(x, w["kernel"], BIAS, 2)


def set_bias(gate, rng):
    gate.bias.assign(BIAS)


def hashed(x, w, noises, training):
    """By the content of the tokens; by ids in `test_hash.py`."""
    table = assignments(4, 2, seed=3)
    values = np.zeros((len(x), 4))
    np.put_along_axis(values, table[code_tokens(tf.constant(x, tf.float32)) % len(table)], 0.5, axis=1)
    return values


CASES = {
    "noisy_top_k": Case(noisy_top_k, noises=((T, 4),), options={"noise_kernel_initializer": "ones"}),
    "hierarchical": Case(hierarchical, (3, 4), (2, 2), ((T, 3), (2 * T, 4)), logits_of_levels),
    "strictly_balanced": Case(strictly_balanced, prepare=set_thresholds),
    "switch": Case(switch, 4, 1, ((T, D),), logits_with_jitter, {"jitter": 0.2, "aux_loss_weight": 0.3}),
    "dense_softmax": Case(dense_softmax, k=None, options={"kernel_initializer": "ones"}),
    "expert_choice": Case(expert_choice),
    "sinkhorn": Case(sinkhorn, options={"iterations": 4}),
    # A bias that moved would make no call like the one before.
    "bias_balanced": Case(bias_balanced, options={"bias_rate": 0.0}, prepare=set_bias),
    "hash": Case(hashed, logits=None),
}
