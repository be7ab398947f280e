"""What there is to run for each study: networks, seeds, and what is changed about their mixture."""

import dataclasses
from typing import Any

import tf_moe
from tf_moe.models import PAPER, PaperNetwork

DENSE_TWIN = "dense twin"

BASELINES = ("MoE-1-Wide", "MoE-1-Deep", "4xLSTM-512", "LSTM-2048-512")
FAMILY = ("MoE-4", "MoE-32", "MoE-256", "MoE-256-h")
TWINS = ("MoE-256", "MoE-256-h")  # whose gates make them cost more than the paper's dense networks at a small width


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        network: Name in `tf_moe.models.PAPER`.
        variant: What is changed, in words; "" for nothing, `DENSE_TWIN` for a dense expert of equal arithmetic.
        changes: Arguments of `SparseMoE`; `gate` may be a dict of the arguments of the network's own gate.
        seed: Of weights, noise and data.
    """

    network: str
    variant: str = ""
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def shape(self, width: int) -> PaperNetwork:
        """The network, where one that is 512 wide in the paper has this width, and all others are in proportion."""
        network = PAPER[self.network]
        network = network.scaled(max(1, network.width * width // 512))
        return network.dense_twin() if self.variant == DENSE_TWIN else network

    def arguments(self, network: PaperNetwork) -> dict[str, Any]:
        """The changes as `network.build` takes them."""
        arguments = dict(self.changes)
        if isinstance(arguments.get("gate"), dict):
            arguments["gate"] = tf_moe.gates.get("noisy_top_k", network.num_experts, network.k, **arguments["gate"])
        return arguments


def family(options) -> list[Run]:
    """The paper's figures: more experts, beside the paper's dense networks and a dense twin of the largest mixtures."""
    networks = options.networks or (*BASELINES, *FAMILY)
    twins = [network for network in networks if network in TWINS]
    return [*(Run(network) for network in networks), *(Run(network, DENSE_TWIN) for network in twins)]


def balance(options) -> list[Run]:
    """The paper's Table 6: weights of the two balance losses."""
    pairs = [(0, 0), (0.2, 0), (0, 0.2), (0.1, 0.1), (0.01, 0.01), (1, 1)]
    if options.grid:
        values = (0, 0.01, 0.1, 0.2, 1)
        pairs = [(importance, load) for importance in values for load in values]
    networks = _mixtures(options)
    return [
        Run(n, f"importance {i:g}, load {w:g}", {"importance_weight": i, "load_weight": w})
        for n in networks
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
    return [Run(network, variant, changes) for network in _mixtures(options) for variant, changes in variants.items()]


def _mixtures(options) -> list[str]:
    """The networks that were asked for, or one; raises ValueError if one has no mixture."""
    networks = options.networks or ["MoE-256"]
    if dense := [name for name in networks if PAPER[name].num_experts is None]:
        raise ValueError(f"{options.study} is about mixtures of experts. Received: --networks with {dense}.")
    return networks


STUDIES = {"family": family, "balance": balance, "ablations": ablations}
