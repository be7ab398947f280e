"""What there is to run for each study: networks, seeds, and what is changed about their mixture."""

import dataclasses
import math
from typing import Any

import tf_moe
from tf_moe.models import PAPER, PaperNetwork

DENSE_TWIN = "dense twin"
RANDOM = "glorot_uniform"  # in the place of zeros

BASELINES = ("MoE-1-Wide", "MoE-1-Deep", "4xLSTM-512", "LSTM-2048-512")
FAMILY = ("MoE-4", "MoE-32", "MoE-256", "MoE-256-h")
TWINS = ("MoE-256", "MoE-256-h")  # whose gates make them cost more than the paper's dense networks at a small width


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        network: Name in `tf_moe.models.PAPER`.
        variant: What is changed, in words; "" for nothing, `DENSE_TWIN` for a dense expert of equal arithmetic.
        changes: Arguments of `SparseMoE`; `gate` may be a pair of a gate's name and its arguments.
        fields: Of `PaperNetwork`, to change it.
        weight_decay: Of the experts' weights.
        width: Of a network that is 512 wide in the paper; all others are in proportion.
        fraction: Share of the training text.
        seed: Of weights, noise and data.
    """

    network: str
    variant: str = ""
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    weight_decay: float = 0.0
    width: int = 64
    fraction: float = 1.0
    seed: int = 0

    def shape(self) -> PaperNetwork:
        """The network at this width."""
        network = PAPER[self.network]
        network = network.scaled(max(1, network.width * self.width // 512))
        network = network.dense_twin() if self.variant == DENSE_TWIN else network
        return dataclasses.replace(network, **self.fields)

    def arguments(self, network: PaperNetwork) -> dict[str, Any]:
        """The changes as `network.build` takes them."""
        arguments = dict(self.changes)
        if isinstance(arguments.get("gate"), tuple):
            name, options = arguments["gate"]
            arguments["gate"] = tf_moe.gates.get(name, network.num_experts, network.k, **options)
        return arguments


def choose(options) -> list[Run]:
    """The runs of the study, or some of its variants, for every seed; raises ValueError for options that do not fit."""
    runs = STUDIES[options.study](options)
    if options.study != "budgets":
        runs = [dataclasses.replace(run, width=options.width) for run in runs]
    if options.variants:
        known = {run.variant for run in runs}
        if not known.issuperset(options.variants):
            raise ValueError(f"--variants must be some of {sorted(known)}. Received: {options.variants}.")
        if options.study == "low_resource" and "" not in options.variants:
            raise ValueError(
                f"low_resource compares to the plain networks. Received: --variants {options.variants}. Add ''."
            )
        runs = [run for run in runs if run.variant in options.variants]
    return [dataclasses.replace(run, seed=seed) for seed in range(options.seeds) for run in runs]


def family(options) -> list[Run]:
    """The paper's figures: more experts, beside the paper's dense networks and a dense twin of the largest mixtures."""
    networks = options.networks or (*BASELINES, *FAMILY)
    twins = [network for network in networks if network in TWINS]
    return [*(Run(network) for network in networks), *(Run(network, DENSE_TWIN) for network in twins)]


def budgets(options) -> list[Run]:
    """The paper's second figure: many experts and none, with less and with more arithmetic."""
    networks = options.networks or ("MoE-1-Wide", "MoE-256-h")
    widths = sorted({max(1, options.width // 2), options.width, 2 * options.width})
    return [Run(network, width=width) for width in widths for network in networks]


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
    """One thing changed at a time, and all of the mixture's means at once."""
    no_losses = {"importance_weight": 0.0, "load_weight": 0.0}
    without_noise = _noisy(kernel_initializer=RANDOM, noisy=False)
    variants = {
        "as in the paper": {},
        "no sigmoid": {"output_activation": None},
        "random gate": _noisy(kernel_initializer=RANDOM),
        "no noise": without_noise,
        "no noise, zero gate": _noisy(noisy=False),
        "importance loss only": {"load_weight": 0.0},
        "load loss only": {"importance_weight": 0.0},
        "no balance loss": no_losses,
        "strictly balanced": {"gate": "strictly_balanced"},
        "random gate, no sigmoid": {**_noisy(kernel_initializer=RANDOM), "output_activation": None},
        "no noise, no balance loss, no sigmoid": {**without_noise, "output_activation": None, **no_losses},
        "capacity factor 1": {"capacity_factor": 1.0},
    }
    runs = []
    for network in _mixtures(options):
        runs += [Run(network, variant, changes) for variant, changes in variants.items()]
        dense = Run(network, DENSE_TWIN, width=options.width)
        one = {"num_experts": 1, "k": 1, "expert_hidden": dense.shape().expert_hidden}
        no_sigmoid = {"output_activation": None, "gate": "dense_softmax"}
        runs += [dense, Run(network, "dense twin, no sigmoid", no_sigmoid, one)]
        if isinstance(experts := PAPER[network].num_experts, int):
            groups = 2 ** (int(math.log2(experts)) // 2)
            runs.append(Run(network, "hierarchical", fields={"num_experts": (groups, experts // groups), "k": (2, 2)}))
    return runs


def gates(options) -> list[Run]:
    """The gates, each as it comes and with its settings changed, over experts of the same size and arithmetic.

    Where a token has one expert, or all, there are experts four times as wide, or four. Expert choice is not here: it
    looks at the words to come. The mixture is the layer's default, without the paper's sigmoid at its end.
    """
    variants = {
        "noisy top-k": {},
        "noisy top-k, losses 0.01": {"importance_weight": 0.01, "load_weight": 0.01},
        "noisy top-k, without noise": _noisy(kernel_initializer=RANDOM, noisy=False),
        "noisy top-k, softmax over all": _noisy(normalize="all"),
        "strictly balanced": {"gate": "strictly_balanced"},
        "bias balanced": {"gate": "bias_balanced"},
        "bias balanced, ten times the rate": {"gate": ("bias_balanced", {"bias_rate": 0.01})},
        "Sinkhorn": {"gate": "sinkhorn"},
        "Sinkhorn, 2 iterations": {"gate": ("sinkhorn", {"iterations": 2})},
        "hash of the features": {"gate": "hash"},
    }
    runs = []
    for name in _mixtures(options):
        network = PAPER[name]
        if isinstance(network.num_experts, tuple):
            raise ValueError(f"gates compares flat mixtures. Received: --networks with {name}.")
        runs += [Run(name, variant, changes) for variant, changes in variants.items()]
        one = {"k": 1, "num_experts": max(1, network.num_experts // network.k)}
        one["expert_hidden"] = (network.k * Run(name, width=options.width).shape().expert_hidden[0],)
        for variant, weight in {"Switch": 0.01, "Switch, loss 0.1": 0.1}.items():
            runs.append(Run(name, variant, {"gate": ("switch", {"aux_loss_weight": weight})}, one))
        runs.append(Run(name, "dense softmax", {"gate": "dense_softmax"}, {"num_experts": network.k}))
    return [dataclasses.replace(run, changes={"output_activation": None, **run.changes}) for run in runs]


def low_resource(options) -> list[Run]:
    """Where more experts overfit, by the share of the training text, and what helps the largest mixture there."""
    networks = options.networks or ("MoE-1-Wide", "MoE-4", "MoE-32", "MoE-256")
    runs = [Run(network) for network in networks]
    dense = [network for network in networks if PAPER[network].num_experts is None]
    runs += [Run(network, "dropout 0.3", fields={"dropout": 0.3}) for network in dense]
    if largest := [network for network in networks if PAPER[network].num_experts is not None][-1:]:
        (network,) = largest
        hidden = Run(network, width=options.width).shape().expert_hidden[0]
        runs += [
            Run(network, "dropout 0.3", fields={"dropout": 0.3}),
            Run(network, "expert dropout 0.4", {"expert_dropout": 0.4}),
            Run(network, "weight decay 0.1", weight_decay=0.1),
            Run(network, "both dropouts", {"expert_dropout": 0.4}, {"dropout": 0.3}),
        ]
        if isinstance(k := PAPER[network].k, int) and k > 1:  # one of the k for all tokens: the same arithmetic
            runs.append(Run(network, "shared expert", {"shared_expert_hidden": hidden}, {"k": k - 1}))
    return [dataclasses.replace(run, fraction=fraction) for fraction in options.fractions for run in runs]


def _noisy(**arguments) -> dict[str, Any]:
    return {"gate": ("noisy_top_k", arguments)}


def _mixtures(options) -> list[str]:
    """The networks that were asked for, or one; raises ValueError if one has no mixture."""
    networks = options.networks or ["MoE-256"]
    if dense := [name for name in networks if PAPER[name].num_experts is None]:
        raise ValueError(f"{options.study} is about mixtures of experts. Received: --networks with {dense}.")
    return networks


STUDIES = {
    "family": family,
    "budgets": budgets,
    "balance": balance,
    "ablations": ablations,
    "gates": gates,
    "low_resource": low_resource,
}
