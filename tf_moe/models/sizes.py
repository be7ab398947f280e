"""Numbers that size and arithmetic of the named networks follow from: of a mixture on one level or two, of an LSTM."""

from typing import NamedTuple


class MixtureNumbers(NamedTuple):
    """Numbers of a mixture, or of the one dense expert in its place.

    Attributes:
        experts: Experts in all.
        chosen: Experts of a position.
        gate_columns: Columns of each matrix of the gate, over both levels.
        logits: Logits of a position; on the second of two levels only the chosen groups have any.
    """

    experts: int
    chosen: int
    gate_columns: int
    logits: int


def mixture_numbers(num_experts: int | tuple[int, int] | None, k: int | tuple[int, int] | None) -> MixtureNumbers:
    """The numbers of a mixture; of a dense expert, which has no gate, where `num_experts` is None."""
    if num_experts is None:
        return MixtureNumbers(1, 1, 0, 0)
    if not isinstance(num_experts, (tuple, list)):
        return MixtureNumbers(num_experts, k, num_experts, num_experts)
    (groups, per_group), (groups_chosen, chosen) = num_experts, k
    columns, logits = groups + groups * per_group, groups + groups_chosen * per_group
    return MixtureNumbers(groups * per_group, groups_chosen * chosen, columns, logits)


def lstm_weights(inputs: int, units: int, width: int) -> int:
    """Number of weights of an LSTM without biases, whose units are projected to the width where they differ."""
    return 4 * units * (inputs + width) + (units * width if units != width else 0)
