"""The layer in float64, against which its routing and its output are checked."""

from fractions import Fraction
from math import ceil, erf

import numpy as np

from tests.dispatch.reference import fill_buffers
from tests.references import softmax
from tf_moe.gates import ExpertChoice, Sinkhorn, Switch
from tf_moe.gates.hash import assignments

KINDS = ("kernel", "bias")


class Reference:
    """The layer's parts in float64, and what each may differ from them by: the rounding of what it was computed from.

    Where the layer had to choose, its own choice is taken, once it was checked to be one of the best.
    """

    def __init__(self, test, layer, x, mask):
        self.test, self.layer = test, layer
        self.x, self.mask = x.astype(np.float64), mask
        self.experts, self.k = layer.total_experts, layer.total_k
        self.weights = {w.path.split("/", 1)[1]: w.numpy().astype(np.float64) for w in layer.weights}

    def check_routing(self, routing, noise, training):
        """Every token has its best experts, with the weights that the paper gives them."""
        gates = routing.gates.numpy().astype(np.float64)
        self.test.assertAllEqual(gates[~self.mask], np.zeros_like(gates[~self.mask]))
        for t in np.flatnonzero(self.mask):
            if isinstance(self.layer.num_experts, tuple):
                self._check_levels(t, gates[t].reshape(self.layer.num_experts), noise)
            else:
                logits, slack = self._logits(t, *self._kernels(""), noise)
                if isinstance(self.layer.gate, Sinkhorn):
                    self._check_sigmoids(gates[t], logits, slack, training)
                else:
                    self._check_choice(gates[t], logits, slack, self.layer.k)
        self.test.assertAllClose(routing.importance, gates.sum(0), rtol=1e-4, atol=1e-4)

    def _kernels(self, prefix):
        return self.weights[f"gate/{prefix}kernel"], self.weights.get(f"gate/{prefix}noise_kernel")

    def _logits(self, t, kernel, noise_kernel, noise):
        """A token's logits, and how far rounding may take them from that."""
        x = self.x[t]
        if isinstance(self.layer.gate, Switch) and noise is not None:
            x, noise = x * (1 + self.layer.gate.jitter * np.vectorize(erf)(noise[t] / 2**0.5)), None
        logits, size = x @ kernel, np.abs(x) @ np.abs(kernel)
        if noise is not None:
            stddev = np.logaddexp(0.0, x @ noise_kernel)
            logits = logits + noise[t] * stddev
            size = size + np.abs(noise[t]) * (stddev + np.abs(x) @ np.abs(noise_kernel))
        return logits, 2e-6 * size.max() + 1e-30

    def _check_choice(self, weights, logits, slack, k):
        """That `weights` are the softmax over k of the largest logits (for one, its share of all)."""
        chosen = np.argsort(-weights, kind="stable")[:k]
        if slack > 0.01 or np.ptp(logits) > 50:  # weights may round to zero, or to one another: only that they sum to 1
            self.test.assertLessEqual(weights.sum(), 1 + 1e-5)
            self.test.assertGreaterEqual(weights.sum(), 1 - 1e-5 if k > 1 else 1 / len(weights) - 1e-5)
            self.test.assertTrue(np.all(weights >= 0))
            best = np.sort(logits)[-k]
            self.test.assertTrue(np.all(logits[weights > 0] >= best - 2 * slack))
            return
        self.test.assertEqual(np.count_nonzero(weights), k)
        others = np.delete(logits, chosen)
        self.test.assertGreaterEqual(logits[chosen].min(), others.max(initial=-np.inf) - 2 * slack)
        expected = softmax(logits[chosen]) if k > 1 else softmax(logits)[chosen]
        self.test.assertAllClose(weights[chosen], expected, rtol=1e-4 + 4 * slack, atol=1e-5)

    def _check_sigmoids(self, weights, logits, slack, training):
        """That the weights are the sigmoids of k logits, at evaluation of the largest."""
        chosen, expected = weights > 0, 1 / (1 + np.exp(np.clip(-logits, None, 700)))
        self.test.assertLessEqual(np.count_nonzero(chosen), self.layer.k)
        self.test.assertTrue(np.all(weights <= 1))
        if slack > 0.01:
            return
        self.test.assertAllClose(weights[chosen], expected[chosen], rtol=1e-4 + 4 * slack, atol=1e-5)
        if logits.min() > -80:  # else a weight may round to zero
            self.test.assertEqual(np.count_nonzero(chosen), self.layer.k)
            if not training:
                self.test.assertGreaterEqual(logits[chosen].min(), logits[~chosen].max(initial=-np.inf) - 2 * slack)

    def _check_levels(self, t, weights, noise):
        """The same on both levels. Groups are told by their weights, which are those of their experts together."""
        (_, (k0, k1)), first = (self.layer.num_experts, self.layer.k), weights.sum(1)
        logits, slack = self._logits(t, *self._kernels(""), noise)
        if k1 > 1:
            self._check_choice(first, logits, slack, k0)
        if noise is not None:
            return  # the second level's noise goes by the order of the groups
        for group in np.flatnonzero(first):
            kernel = self._kernels("group_")[0][group]
            logits, slack = self._logits(t, kernel, None, None)
            if k1 > 1:
                self._check_choice(weights[group] / first[group], logits, slack, k1)

    def check_balanced(self, routing, training):
        """Every expert has its best tokens, or every token those above the thresholds."""
        scores = np.array([softmax(x @ self.weights["gate/kernel"]) for x in self.x]).reshape(-1, self.experts)
        chosen = routing.gates.numpy() > 0
        size = self.mask.sum()
        slack = 1e-5 + 4e-6 * np.abs(self.x @ self.weights["gate/kernel"]).max(initial=0)
        self.test.assertFalse(chosen[~self.mask].any())
        if slack > 0.01:
            return
        if training or isinstance(self.layer.gate, ExpertChoice):
            for i in range(self.experts):
                m = int(np.clip(np.round(np.float32(self.layer.k * size / self.experts)), min(1, size), size))
                inside, outside = scores[self.mask & chosen[:, i], i], scores[self.mask & ~chosen[:, i], i]
                if scores[self.mask, i].min(initial=1) > 1e-6:  # a score that is zero is no choice
                    self.test.assertLen(inside, m)
                self.test.assertGreaterEqual(inside.min(initial=1), outside.max(initial=0) - slack)
        else:
            above = scores - self.weights["gate/thresholds"] / self.experts
            sure = (np.abs(above) > slack) & (scores > 1e-6) & self.mask[:, None]
            self.test.assertAllEqual(chosen[sure], above[sure] > 0)

    def check_bias_balanced(self, routing):
        """Every token has the experts with the highest score and bias, with weights that are their scores' shares."""
        weights, kernel, k = routing.gates.numpy(), self.weights["gate/kernel"], self.layer.k
        self.test.assertFalse(weights[~self.mask].any())
        for t in np.flatnonzero(self.mask):
            logits, slack = self._logits(t, kernel, None, None)
            if slack > 0.01 or np.abs(logits).max() > 50:
                continue
            scores, chosen = 1 / (1 + np.exp(-logits)), np.argsort(-weights[t], kind="stable")[:k]
            self.test.assertEqual(np.count_nonzero(weights[t]), k)
            biased, slack = scores + self.weights["gate/bias"], slack + 1e-6
            self.test.assertGreaterEqual(
                biased[chosen].min(), np.delete(biased, chosen).max(initial=-np.inf) - 2 * slack
            )
            expected = scores[chosen] / scores[chosen].sum() if k > 1 else scores[chosen]
            self.test.assertAllClose(weights[t][chosen], expected, rtol=1e-4 + 4 * slack, atol=1e-5)

    def check_hash(self, routing, ids):
        """Every token has k different experts with equal weights; those of its id, where there are ids."""
        index, gates = routing.expert_index.numpy(), routing.gates.numpy()
        if ids is not None:
            self.test.assertAllEqual(index, assignments(self.experts, self.k, 0)[ids % self.layer.gate.period])
        expected = np.zeros_like(gates)
        np.put_along_axis(expected, index, 1 / self.k, axis=1)
        self.test.assertAllClose(gates, expected * self.mask[:, None])
        self.test.assertAllEqual(np.count_nonzero(expected, axis=1), np.full(len(index), self.k))

    def output(self, routing):
        """The gated sum of experts, and the size of what was added up for it, both (T, D)."""
        index, weights = routing.expert_index.numpy(), routing.combine_weights.numpy()
        weights = self._without_dropped(index, weights).astype(np.float64)
        output, size = np.zeros_like(self.x), np.zeros_like(self.x)
        for t, choice in np.argwhere(weights > 0):
            y, y_size = self._expert(index[t, choice], self.x[t])
            output[t] += weights[t, choice] * y
            size[t] += weights[t, choice] * y_size
        if self.layer.shared_expert_hidden:
            for t in np.flatnonzero(self.mask):
                y, y_size = self._shared_expert(self.x[t])
                output[t] += y
                size[t] += y_size
        return output, size

    def _without_dropped(self, index, weights):
        if self.layer.capacity_factor is None:
            return weights
        share = Fraction(self.layer.capacity_factor).limit_denominator(10_000) * self.k * len(self.x) / self.experts
        capacity = max(1, min(len(self.x), ceil(share)))
        buffers, _ = fill_buffers(index, weights, self.experts, capacity, self.layer.drop_by)
        kept = np.zeros(weights.size, bool)
        kept[[a for buffer in buffers for a in buffer]] = True
        return np.where(kept.reshape(weights.shape), weights, 0.0)

    def _expert(self, i, x):
        stacks = {name.split("/")[1]: w[i] for name, w in self.weights.items() if name.startswith("experts/")}
        return feed_forward(x, *(stacks.get(f"{n}_{kind}", 0.0) for n in ("hidden", "output") for kind in KINDS))

    def _shared_expert(self, x):
        names = [f"shared_expert/{n}/{kind}" for n in ("hidden", "output") for kind in KINDS]
        return feed_forward(x, *(self.weights.get(name, 0.0) for name in names))


def feed_forward(x, w1, b1, w2, b2):
    """What an expert makes of a token, and the size of what was added up for it."""
    hidden, hidden_size = x @ w1 + b1, np.abs(x) @ np.abs(w1) + np.abs(b1)
    return np.maximum(hidden, 0) @ w2 + b2, hidden_size @ np.abs(w2) + np.abs(b2)
