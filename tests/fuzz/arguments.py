"""Arguments of the layer: such that can be, any, and which of these the documentation allows."""

import hypothesis.strategies as st
import numpy as np

DTYPES = ["float32", "float64", "mixed_bfloat16", "mixed_float16"]
ONE_LEVEL = (
    "noisy_top_k", "strictly_balanced", "switch", "dense_softmax", "expert_choice", "sinkhorn", "bias_balanced", "hash",
)  # fmt: skip
ODD = st.sampled_from([0, -1, 12, 2.0, "2", None, True, (2,), (1, 2, 3), [2, 2], float("nan"), np.int64(2)])


@st.composite
def valid_arguments(draw):
    """Arguments of a layer that can be."""
    gate = draw(st.sampled_from([*ONE_LEVEL, "hierarchical"]))
    if gate == "hierarchical" or (gate == "noisy_top_k" and draw(st.booleans())):
        num_experts = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
        k = tuple(draw(st.integers(1, n)) for n in num_experts)
    else:
        num_experts = draw(st.integers(1, 9))
        k = {"switch": 1, "dense_softmax": num_experts}.get(gate) or draw(st.integers(1, num_experts))
    return {
        "num_experts": num_experts,
        "k": k,
        "gate": gate,
        "capacity_factor": draw(st.sampled_from([None, 0.1, 1, 1.25, 7.5])),
        "drop_by": draw(st.sampled_from(["position", "weight"])),
        "use_bias": draw(st.booleans()),
        "shared_expert_hidden": draw(st.sampled_from([None, 3])),
        "expert_dropout": draw(st.sampled_from([0, 0.5])),
        "recompute": draw(st.booleans()),
        "dtype": draw(st.sampled_from(DTYPES)),
    }


any_arguments = st.fixed_dictionaries(
    {
        "num_experts": st.integers(1, 4) | st.tuples(st.integers(1, 3), st.integers(1, 3)) | ODD,
        "k": st.integers(1, 4) | st.tuples(st.integers(1, 3), st.integers(1, 3)) | ODD,
        "gate": st.sampled_from([*ONE_LEVEL, "hierarchical", "top_k", 3]),
        "capacity_factor": st.sampled_from([None, 0.1, 1, 1.25, 7.5, 0, -1.0, "1", float("inf")]),
        "drop_by": st.sampled_from(["position", "weight", "luck"]),
    }
)


def is_count(value, least=1):
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= least


def is_choice(experts, k):
    return is_count(experts) and is_count(k) and k <= experts


def is_valid(num_experts, k, gate, capacity_factor, drop_by, **_):
    """Whether the documentation allows such a layer."""
    levels = [isinstance(x, (tuple, list)) for x in (num_experts, k)]
    if any(levels):
        fits = all(levels) and len(num_experts) == len(k) == 2 and all(map(is_choice, num_experts, k))
        fits = fits and gate in ("noisy_top_k", "hierarchical")
    else:
        fixed = {"switch": 1, "dense_softmax": num_experts}.get(gate, k)
        k = fixed if k is None else k
        fits = is_choice(num_experts, k) and k == fixed and gate in ONE_LEVEL
    return fits and capacity_factor in (None, 0.1, 1, 1.25, 7.5) and drop_by != "luck"
