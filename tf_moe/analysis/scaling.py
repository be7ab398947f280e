"""What a step with experts on many devices costs each of them: arithmetic, bytes sent, memory.

`python -m tf_moe.analysis.scaling` prints it for models of the paper.

Legend: n experts of D -> H -> D, k of them for a token; T tokens a step on N shards x R replicas = d devices;
M = k T / d rows a device; C places for each expert on each device.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from tf_moe import checks
from tf_moe.gates.numbers import check_numbers
from tf_moe.ops.grouped_mesh import sizes

__all__ = ["StepCost", "format_costs", "step_cost"]


class StepCost(NamedTuple):
    """One training step, by device. Multiply-adds are those of the forward pass unless they say otherwise.

    Attributes:
        rows: Rows M that a device sends to experts.
        block_rows: Places n C for them in the block that is exchanged, empty ones included.
        expert_multiply_adds: Of the experts, on all places of their block.
        gate_multiply_adds: Of the gate's matrices, W_g and W_noise.
        sum_multiply_adds: Of the sums by expert (counts, importance, load), which are matrix products on a mesh.
        dense_multiply_adds: Of all other layers.
        training_multiply_adds: Of forward and backward pass together.
        exchange_bytes: Sent to other devices by the all-to-alls: there and back, forward and backward.
        ideal_exchange_bytes: The same if no place of the block were empty.
        turn_exchange_bytes: Sent in addition for each turn of the loop of hot experts, forward and backward.
        reduce_bytes: Sent by the all-reduces of gradients, in a ring.
        weight_bytes: Memory of the weights; that of their gradients is as much.
        slot_bytes: Memory of the optimizer's slots.
        block_bytes: Memory of what is kept of the block for the backward pass: the experts' inputs and hidden layers;
            with `recompute` the inputs, and hidden layers only while the backward pass is in the mixture.
        number_bytes: Bytes of a number that is computed and sent.

    Example:

    >>> import tf_moe.analysis.scaling
    >>> cost = tf_moe.analysis.scaling.step_cost(16, 64, 256, k=2, tokens=1024, shards=4)
    >>> cost.rows, cost.padding > 1
    (512, True)
    """

    rows: float
    block_rows: int
    expert_multiply_adds: float
    gate_multiply_adds: float
    sum_multiply_adds: float
    dense_multiply_adds: float
    training_multiply_adds: float
    exchange_bytes: float
    ideal_exchange_bytes: float
    turn_exchange_bytes: float
    reduce_bytes: float
    weight_bytes: float
    slot_bytes: float
    block_bytes: float
    number_bytes: int

    @property
    def padding(self) -> float:
        """Places of the block for each row in it."""
        return self.block_rows / self.rows

    @property
    def arithmetic_per_number(self) -> float:
        """The experts' multiply-adds in training for each number exchanged; infinite on one shard.

        Of inputs and outputs together it is the hidden width H in the forward pass alone (section 3.2), 1.5 H with the
        backward pass, and more where some rows stay on their device. It has to exceed the multiply-adds a device does
        in the time it sends a number.
        """
        numbers = self.exchange_bytes / self.number_bytes
        return 3 * self.expert_multiply_adds / numbers if numbers else math.inf


def step_cost(
    num_experts: int | tuple[int, int],
    width: int,
    expert_hidden: int,
    k: int | tuple[int, int],
    tokens: int,
    shards: int = 1,
    replicas: int = 1,
    dense_parameters: int = 0,
    table_parameters: int = 0,
    number_bytes: int = 4,
    parameter_bytes: int = 4,
    slots: float = 2,
    recompute: bool = False,
) -> StepCost:
    """Cost of a training step of a model with one `SparseMoE`, for each device of an `ExpertParallelStrategy`.

    Matrix products are counted, elementwise work is not. With both shards and replicas the other layers are computed on
    batches that are split over the longer axis only, and joining them sends more, which is not counted.

    Args:
        num_experts: Number of experts n; a pair (groups, experts in each) for two levels.
        width: Width D of the layer.
        expert_hidden: Width H of an expert's hidden layer.
        k: Experts for a token; a pair for two levels.
        tokens: Tokens T of a step, over all devices.
        shards: Devices N that the experts are split over.
        replicas: Copies R of each shard.
        dense_parameters: Other weights than the layer's, each used in one multiply-add for a token.
        table_parameters: Other weights that are looked up, such as an embedding's.
        number_bytes: Bytes of a number that is computed and sent: 4, or 2 under mixed precision.
        parameter_bytes: Bytes of a number of a weight, its gradient and its slots: 4 under mixed precision too.
        slots: Numbers that the optimizer keeps for each weight, on the average: 2 for Adam.
        recompute: Whether hidden activations are computed again in the backward pass.

    Returns:
        A `StepCost`.

    Raises:
        ValueError: If k is not in 1..num_experts, on each level where there are two, a number is too low, or no
            integer where it has to be one, or experts do not divide evenly over the shards, or tokens over the devices.

    Example:

    >>> import tf_moe.analysis.scaling
    >>> step_cost = tf_moe.analysis.scaling.step_cost
    >>> cost = step_cost(256, 512, 1024, k=4, tokens=16 * 18_750, shards=16, dense_parameters=2**22)
    >>> round(cost.arithmetic_per_number)  # 1.5 H 16 / 15
    1638

    Reference: sections 3.1 and 3.2 of Shazeer et al. (2017).
    """
    num_experts, k = check_numbers(num_experts, k)
    positive = {"width": width, "expert_hidden": expert_hidden, "tokens": tokens, "shards": shards}
    positive |= {"replicas": replicas, "number_bytes": number_bytes, "parameter_bytes": parameter_bytes}
    for name, value in positive.items():
        checks.integer(name, value)
    for name, value in {"dense_parameters": dense_parameters, "table_parameters": table_parameters}.items():
        checks.integer(name, value, least=0)
    checks.at_least_zero("slots", slots)
    two_levels = isinstance(num_experts, tuple)
    groups, per_group = num_experts if two_levels else (0, num_experts)
    n, total_k, devices = (groups or 1) * per_group, math.prod(k) if two_levels else k, shards * replicas
    if n % shards or tokens % devices:
        raise ValueError(
            f"Experts must divide evenly over the shards and tokens over all devices. Received: num_experts={n}, "
            f"shards={shards}, tokens={tokens}, devices={devices}."
        )
    rows = total_k * tokens // devices
    places, turn = sizes(rows, n)
    away, pieces = (shards - 1) / shards, max(shards, replicas)
    here = tokens / pieces  # tokens of the other layers on a device

    # Both matrices of the gate; those of the second level are applied to blocks with room for even loads.
    gate_parameters = 2 * width * (groups + n)
    gate = 2 * width * (groups or n) * here
    counting, differentiated = rows * n, total_k * n * here
    if groups:
        in_group = tokens // devices * k[0]
        gate += 2 * width * per_group * groups * sizes(in_group, groups)[0]
        differentiated += k[0] * n * here
    experts, dense = 2 * width * expert_hidden * n * places, dense_parameters * here

    replicated, sharded = gate_parameters + dense_parameters + table_parameters, 2 * width * expert_hidden * n / shards
    weights = parameter_bytes * (replicated + sharded)
    exchanged = away * width * number_bytes  # of each row that goes one way
    return StepCost(
        rows=rows,
        block_rows=n * places,
        expert_multiply_adds=experts,
        gate_multiply_adds=gate,
        sum_multiply_adds=counting + differentiated,
        dense_multiply_adds=dense,
        training_multiply_adds=(4 if recompute else 3) * experts + 3 * (gate + dense) + counting + 2 * differentiated,
        exchange_bytes=4 * n * places * exchanged,
        ideal_exchange_bytes=4 * rows * exchanged,
        turn_exchange_bytes=5 * n * turn * exchanged,  # its backward pass sends the inputs again
        reduce_bytes=parameter_bytes * (_ring(replicated, pieces) + _ring(sharded, replicas)),
        weight_bytes=weights,
        slot_bytes=slots * weights,
        block_bytes=number_bytes * n * places * (width + (0 if recompute else expert_hidden)),
        number_bytes=number_bytes,
    )


def _ring(numbers: float, devices: int) -> float:
    """Numbers that each device sends to sum this many over all of them."""
    return 2 * numbers * (devices - 1) / devices


def format_costs(costs: Mapping[str, StepCost]) -> str:
    """A Markdown table of costs by device and step, a column for each, headed by its name.

    Example:

    >>> import tf_moe.analysis.scaling
    >>> cost = tf_moe.analysis.scaling.step_cost(16, 64, 256, k=2, tokens=1024, shards=4)
    >>> print(tf_moe.analysis.scaling.format_costs({"4 shards": cost}))
    | by device and step | 4 shards |
    ...
    """
    rows = [["by device and step", *costs], ["---"] * (1 + len(costs))]
    rows += [[label, *map(show, costs.values())] for label, show in _ROWS.items()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


_ROWS = {
    "rows sent to experts": lambda c: f"{c.rows:,}",
    "places for them in the block": lambda c: f"{c.block_rows:,} ({c.padding:.2f} a row)",
    "multiply-adds of experts (M)": lambda c: f"{c.expert_multiply_adds / 1e6:,.1f}",
    "... of the gate (M)": lambda c: f"{c.gate_multiply_adds / 1e6:,.1f}",
    "... of sums by expert (M)": lambda c: f"{c.sum_multiply_adds / 1e6:,.1f}",
    "... of other layers (M)": lambda c: f"{c.dense_multiply_adds / 1e6:,.1f}",
    "... of all, with the backward pass (M)": lambda c: f"{c.training_multiply_adds / 1e6:,.1f}",
    "the exchange sends (MB)": lambda c: f"{c.exchange_bytes / 1e6:,.2f}",
    "... without empty places (MB)": lambda c: f"{c.ideal_exchange_bytes / 1e6:,.2f}",
    "... more in a turn for hot experts (MB)": lambda c: f"{c.turn_exchange_bytes / 1e6:,.2f}",
    "all-reduces of gradients send (MB)": lambda c: f"{c.reduce_bytes / 1e6:,.2f}",
    "memory of weights and gradients (MB)": lambda c: f"{2 * c.weight_bytes / 1e6:,.1f}",
    "... of the optimizer's slots (MB)": lambda c: f"{c.slot_bytes / 1e6:,.1f}",
    "... kept of the block (MB)": lambda c: f"{c.block_bytes / 1e6:,.1f}",
    "experts' multiply-adds a number exchanged": lambda c: f"{c.arithmetic_per_number:,.0f}",
}


def _paper_costs() -> dict[str, StepCost]:
    """Models of appendices C.1 and D, without embedding and softmax; 18,750 words a device, as 300,000 are on 16."""
    models = {
        "MoE-256, 16 devices": (256, 4, 16, False),
        "MoE-4096-h, 16 devices": ((16, 256), (2, 2), 16, False),
        "MoE-131072-h, 128 devices": ((256, 512), (2, 2), 128, True),
    }
    lstms = 2 * 4 * 512 * 1024
    return {
        name: step_cost(experts, 512, 1024, k, 18_750 * d, d, dense_parameters=lstms, recompute=recompute)
        for name, (experts, k, d, recompute) in models.items()
    }


if __name__ == "__main__":
    print(format_costs(_paper_costs()))
