"""Gates: from tokens to a Routing. Each is a Keras layer in a file of its own; `Gate` says how to make another.

Which to take? Noisy top-k, the default, and on two levels beyond a thousand experts. `BiasBalanced` has no losses to
tune and the most even load; `StrictlyBalanced` suits large batches of one kind of text; `Switch`, with one expert for a
token, moves the fewest rows; `Sinkhorn` and `ExpertChoice` look at the batch as a whole, the latter at words to come.
`DenseSoftmax` and `Hash` are controls. `examples/paper/report.md` compares them in one experiment.
"""

import keras

from tf_moe.gates.bias_balanced import BiasBalanced
from tf_moe.gates.dense_softmax import DenseSoftmax
from tf_moe.gates.expert_choice import ExpertChoice
from tf_moe.gates.gate import Gate
from tf_moe.gates.hash import Hash
from tf_moe.gates.hierarchical import Hierarchical
from tf_moe.gates.linear import LinearGate
from tf_moe.gates.noisy_top_k import NoisyTopK
from tf_moe.gates.numbers import plain
from tf_moe.gates.routing import Routing
from tf_moe.gates.several import products
from tf_moe.gates.sinkhorn import Sinkhorn
from tf_moe.gates.strictly_balanced import StrictlyBalanced
from tf_moe.gates.switch import Switch

GATES = {
    "noisy_top_k": NoisyTopK,
    "hierarchical": Hierarchical,
    "strictly_balanced": StrictlyBalanced,
    "switch": Switch,
    "dense_softmax": DenseSoftmax,
    "expert_choice": ExpertChoice,
    "sinkhorn": Sinkhorn,
    "bias_balanced": BiasBalanced,
    "hash": Hash,
}
"""The gates by the names that `SparseMoE` and `get` know them by.

Example:

>>> gate = tf_moe.gates.GATES["noisy_top_k"](num_experts=8, k=2)
>>> gate.num_experts
8
"""


def get(
    identifier: str | dict | Gate,
    num_experts: int | tuple[int, int],
    k: int | tuple[int, int] | None,
    seed: int | None = None,
    **options,
) -> Gate:
    """The gate for an identifier.

    Args:
        identifier: A name in `GATES`, a `Gate`, or the config of one. "noisy_top_k" with a pair of experts is the
            hierarchical gate.
        num_experts: Number of experts, or a pair.
        k: Number of experts chosen, or a pair; or None, where the gate leaves no choice of it: "switch" has 1,
            "dense_softmax" all, and a gate passed in its own.
        seed: Seed of a gate made from a name.
        **options: Further arguments of a gate made from a name, such as `kernel_initializer`.

    Returns:
        A gate for `num_experts` and `k`.

    Raises:
        ValueError: If the name is unknown, or a gate passed in was made for other numbers, or options are given to it.

    Example:

    >>> type(tf_moe.gates.get("noisy_top_k", num_experts=(4, 8), k=(2, 2))).__name__
    'Hierarchical'
    """
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if isinstance(identifier, Gate):
        k = identifier.k if k is None else k
        if (identifier.num_experts, identifier.k) != (plain(num_experts), plain(k)):
            raise ValueError(
                "The gate must be made for the layer's num_experts and k. Received: a gate for "
                f"num_experts={identifier.num_experts}, k={identifier.k}, "
                f"in a layer with num_experts={num_experts}, k={k}. Pass k=None for the gate's own."
            )
        if options:
            raise ValueError(
                "Only a gate made from a name can have options. "
                f"Received: {options}, and the gate {identifier!r}. Give them to the gate itself."
            )
        return identifier
    two_levels = isinstance(num_experts, (tuple, list)) or isinstance(k, (tuple, list))
    if identifier == "noisy_top_k" and two_levels:
        identifier = "hierarchical"
    if not isinstance(identifier, str) or identifier not in GATES:
        raise ValueError(f"gate must be one of {sorted(GATES)} or a tf_moe.gates.Gate. Received: gate={identifier!r}.")
    if two_levels and identifier != "hierarchical":
        raise ValueError(
            f"gate={identifier!r} has one level. Received: num_experts={num_experts!r}, k={k!r}. Pass numbers, or "
            "gate='noisy_top_k' for two levels."
        )
    if k is None and GATES[identifier].chooses_k:
        without = sorted(name for name, gate in GATES.items() if not gate.chooses_k)
        raise ValueError(
            f"gate={identifier!r} needs k, the number of experts for each token. Received: k=None, which is for "
            f"{' and '.join(without)}, and for a gate passed in."
        )
    return GATES[identifier](num_experts, k, seed=seed, **options)


__all__ = [
    "GATES",
    "BiasBalanced",
    "DenseSoftmax",
    "ExpertChoice",
    "Gate",
    "Hash",
    "Hierarchical",
    "LinearGate",
    "NoisyTopK",
    "Routing",
    "Sinkhorn",
    "StrictlyBalanced",
    "Switch",
    "get",
    "products",
]
