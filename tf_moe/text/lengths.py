"""Lengths of rows, as several kinds of batches take them."""

from collections.abc import Sequence

from tf_moe import checks


def rising_lengths(name: str, lengths: Sequence[int]) -> list[int]:
    """The lengths as plain integers; raises ValueError unless they are some, 1 or more, each over the one before.

    Args:
        name: Name of the argument.
        lengths: What was received.
    """
    lengths = [checks.integer(f"{name}[{n}]", length) for n, length in enumerate(lengths)]
    if not lengths or lengths != sorted({*lengths}):
        raise ValueError(f"{name} must be rising and at least 1. Received: {name}={lengths}")
    return lengths
