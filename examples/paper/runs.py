"""What there is to run for each study: networks, seeds, and what is changed about their mixture."""

import dataclasses
from typing import Any

import tf_moe
from tf_moe.models import PaperNetwork

BASELINES = ("MoE-1-Wide", "MoE-1-Deep", "4xLSTM-512", "LSTM-2048-512")
FAMILY = ("MoE-4", "MoE-32", "MoE-256", "MoE-256-h")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        network: Name in `tf_moe.models.PAPER`.
        variant: What is changed, in words; "" for nothing.
        changes: Arguments of `SparseMoE`; `gate` may be a dict of the arguments of the network's own gate.
        seed: Of weights, noise and data.
    """

    network: str
    variant: str = ""
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def arguments(self, network: PaperNetwork) -> dict[str, Any]:
        """The changes as `network.build` takes them."""
        arguments = dict(self.changes)
        if isinstance(arguments.get("gate"), dict):
            arguments["gate"] = tf_moe.gates.get("noisy_top_k", network.num_experts, network.k, **arguments["gate"])
        return arguments


def family(options) -> list[Run]:
    """The paper's figures: more experts at equal compute, beside dense networks of that compute."""
    return [Run(network) for network in (options.networks or (*BASELINES[:2], *FAMILY, *BASELINES[2:]))]


def balance(options) -> list[Run]:
    """The paper's Table 6: weights of the two balance losses."""
    pairs = [(0, 0), (0.2, 0), (0, 0.2), (0.1, 0.1), (0.01, 0.01), (1, 1)]
    if options.grid:
        values = (0, 0.01, 0.1, 0.2, 1)
        pairs = [(importance, load) for importance in values for load in values]
    return [
        Run(n, f"importance {i:g}, load {w:g}", {"importance_weight": i, "load_weight": w})
        for n in options.networks or ["MoE-256"]
        for i, w in pairs
    ]


def ablations(options) -> list[Run]:
    """One thing changed at a time, and the largest changes together."""
    variants = {
        "as in the paper": {},
        "no sigmoid": {"output_activation": None},
        "random gate": {"gate": {"kernel_initializer": "glorot_uniform"}},
        "no noise": {"gate": {"noisy": False, "kernel_initializer": "glorot_uniform"}},
        "no noise, zero gate": {"gate": {"noisy": False}},
        "importance loss only": {"load_weight": 0.0},
        "load loss only": {"importance_weight": 0.0},
        "strictly balanced": {"gate": "strictly_balanced"},
        "random gate, no sigmoid": {"gate": {"kernel_initializer": "glorot_uniform"}, "output_activation": None},
        "capacity factor 1": {"capacity_factor": 1.0},
    }
    return [
        Run(network, variant, changes)
        for network in options.networks or ["MoE-256"]
        for variant, changes in variants.items()
    ]


STUDIES = {"family": family, "balance": balance, "ablations": ablations}
