"""The paper's formulas, and those of later gates, in plain NumPy, float64, one loop an index: slow, and to be read
beside the papers.

Legend: T tokens, D width, E experts, a groups of b experts, K chosen.
"""

import math

import numpy as np


def cv_squared(x):
    """CV(x)^2, population variance over squared mean (section 4)."""
    x = np.asarray(x, np.float64).ravel()
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return variance / mean**2


def normal_cdf(z):
    return 0.5 * (1.0 + math.erf(z / math.sqrt(2.0)))


def softplus(z):
    return np.logaddexp(0.0, z)


def softmax(v):
    """Softmax of a vector; entries of -inf get 0."""
    e = np.exp(v - np.max(v))
    return e / e.sum()


def top_k_set(v, k):
    """Indices of the k largest, best first."""
    return sorted(range(len(v)), key=lambda i: -v[i])[:k]


def gate_values(logits, k, normalize="chosen"):
    """softmax(KeepTopK(H(x), k)) of one token; for k = 1, or "all", the softmax among all, kept where it is largest."""
    chosen = top_k_set(logits, k)
    kept = np.full(len(logits), -np.inf)
    kept[chosen] = np.asarray(logits)[chosen]
    if k > 1 and normalize == "chosen":
        return softmax(kept)
    return np.where(np.isfinite(kept), softmax(np.asarray(logits)), 0.0)


def kth_excluding(v, k, i):
    """The k-th highest component of v, leaving out component i (appendix A)."""
    return sorted(np.delete(v, i), reverse=True)[k - 1]


def load_probabilities(clean, noisy, stddev, k):
    """P(x, i) of appendix A for each token and expert, (T, E)."""
    tokens, experts = clean.shape
    p = np.ones((tokens, experts))  # with k = E nothing can be left out
    if k == experts:
        return p
    for t in range(tokens):
        for i in range(experts):
            p[t, i] = normal_cdf((clean[t, i] - kth_excluding(noisy[t], k, i)) / stddev[t, i])
    return p


def noisy_top_k(x, w_gate, w_noise, noise, k, mask=None):
    """Section 2.1 and appendix A: gate values (T, E), importance (E,), load (E,)."""
    clean, stddev = x @ w_gate, softplus(x @ w_noise)
    noisy = clean + noise * stddev
    gates = np.array([gate_values(h, k) for h in noisy]).reshape(clean.shape)
    p = load_probabilities(clean, noisy, stddev, k)
    if mask is not None:
        gates[~mask], p[~mask] = 0.0, 0.0
    return gates, gates.sum(axis=0), p.sum(axis=0)


def hierarchical(x, w_gate, w_noise, group_gate, group_noise, noises, k, mask=None):
    """Appendix B: gate values (T, a * b), importance (a * b,), load (a * b,).

    `noises` are those of the first level, (T, a), and of the second, (T, k[0], b), for a token's chosen groups in the
    order of their noisy logits.
    """
    tokens, (groups, experts) = len(x), (w_gate.shape[1], group_gate.shape[2])
    primary_noisy = x @ w_gate + noises[0] * softplus(x @ w_noise)
    primary, _, primary_load = noisy_top_k(x, w_gate, w_noise, noises[0], k[0], mask)
    gates = np.zeros((tokens, groups, experts))
    load = np.zeros((groups, experts))
    for i in range(groups):
        inside = [t for t in range(tokens) if primary[t, i] > 0]  # X^(i)
        if not inside:
            continue
        rank = [top_k_set(primary_noisy[t], k[0]).index(i) for t in inside]
        noise = noises[1][inside, rank]
        secondary, _, secondary_load = noisy_top_k(x[inside], group_gate[i], group_noise[i], noise, k[1])
        gates[inside, i] = primary[inside, i][:, None] * secondary
        load[i] = primary_load[i] * secondary_load / len(inside)
    gates = gates.reshape(tokens, groups * experts)
    return gates, gates.sum(axis=0), load.ravel()


def batchwise_mask(scores, m):
    """M_batchwise of appendix F: for each expert its top m values over the batch, (T, E)."""
    chosen = np.zeros(scores.shape)
    for i in range(scores.shape[1]):
        chosen[top_k_set(scores[:, i], m), i] = 1.0
    return chosen


def threshold_mask(scores, thresholds):
    """M_threshold of appendix F."""
    return (scores > thresholds).astype(np.float64)


def masked_gates(scores, chosen):
    """G of appendix F: scores times the mask over their sum; zeros for a token that no expert takes."""
    kept = scores * chosen
    return np.array([row / row.sum() if row.sum() > 0 else row for row in kept])


def threshold_loss(scores, thresholds, chosen):
    """L_batchwise of appendix F, over the number of tokens."""
    tokens, experts = scores.shape
    total = 0.0
    for j in range(tokens):
        for i in range(experts):
            above = float(scores[j, i] > thresholds[i])
            total += (above - chosen[j, i]) * (scores[j, i] - thresholds[i])
    return total / tokens


def switch(logits):
    """Fedus et al. (2021): gate values (T, E), a token's probability of its likeliest expert; and their loss."""
    tokens, experts = logits.shape
    p = np.array([softmax(h) for h in logits])
    gates = np.array([np.where(np.arange(experts) == np.argmax(row), row, 0.0) for row in p])
    f, mean = (gates > 0).sum(axis=0) / tokens, p.sum(axis=0) / tokens
    return gates, experts * sum(f[i] * mean[i] for i in range(experts))


def sinkhorn(scores, iterations):
    """Positive scores (T, E) with rows and then columns divided by their sums, so many times."""
    plan = scores.copy()
    for _ in range(iterations):
        for t in range(len(plan)):
            plan[t] = plan[t] / plan[t].sum()
        for i in range(plan.shape[1]):
            plan[:, i] = plan[:, i] / plan[:, i].sum()
    return plan


def z_loss(logits):
    """Zoph et al. (2022), equation 5."""
    return sum(math.log(sum(math.exp(h) for h in row)) ** 2 for row in logits) / len(logits)


def bias_balanced(x, w_gate, bias, k, mask=None):
    """Equations 12 to 16 of DeepSeek-V3: gate values (T, E); for k = 1 the score itself."""
    gates = np.zeros((len(x), w_gate.shape[1]))
    for t in range(len(x)):
        scores = 1 / (1 + np.exp(-(x[t] @ w_gate)))
        chosen = top_k_set(scores + bias, k)
        if mask is None or mask[t]:
            gates[t, chosen] = scores[chosen] / (scores[chosen].sum() if k > 1 else 1)
    return gates


def gradients(function, arrays, step=1e-8):
    """Central differences of a scalar function of several float64 arrays, one array of slopes for each."""
    arrays = [np.array(np.asarray(a), np.float64) for a in arrays]
    slopes = [np.zeros_like(a) for a in arrays]
    for array, slope in zip(arrays, slopes, strict=True):
        for place in np.ndindex(array.shape):
            value = array[place]
            array[place] = value + step
            above = function(*arrays)
            array[place] = value - step
            below = function(*arrays)
            array[place] = value
            slope[place] = (above - below) / (2 * step)
    return slopes
