"""How many experts there are, and how many of them are chosen: on one level, or a pair for two."""

from tf_moe import checks


def plain(value):
    """Numbers or pairs in one form, as they come from users (tuples) or from JSON (lists)."""
    return tuple(value) if isinstance(value, (tuple, list)) else value


def check_choice(num_experts: int, k: int, of: str = "num_experts") -> tuple[int, int]:
    """Both numbers; raises ValueError unless k experts can be chosen out of num_experts."""
    num_experts, k = checks.integer(of, num_experts), checks.integer("k", k)
    if k > num_experts:
        raise ValueError(
            f"k cannot exceed the number of experts to choose from. Received: k={k}, {of}={num_experts}. "
            f"Pass k<={num_experts}, or more experts."
        )
    return num_experts, k


def check_numbers(
    num_experts: int | tuple[int, int], k: int | tuple[int, int]
) -> tuple[int | tuple[int, int], int | tuple[int, int]]:
    """Both, for one level or two; raises ValueError unless so many can be chosen."""
    two_levels = isinstance(num_experts, (tuple, list)) or isinstance(k, (tuple, list))
    return (check_levels if two_levels else check_choice)(num_experts, k)


def check_levels(num_experts: tuple[int, int], k: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Both pairs; raises ValueError unless they are pairs, and of each level so many can be chosen."""
    for name, value in (("num_experts", num_experts), ("k", k)):
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise ValueError(
                f"{name} must be a pair for two levels, such as num_experts=(16, 256), k=(2, 2). "
                f"Received: {name}={value!r}."
            )
    (groups, groups_chosen), (experts, chosen) = (
        check_choice(num_experts[level], k[level], f"num_experts[{level}]") for level in (0, 1)
    )
    return (groups, experts), (groups_chosen, chosen)


def check_fixed(k: int | None, fixed: int, why: str) -> int:
    """The number of experts of a gate that leaves no choice of it; raises ValueError unless k is that, or None."""
    if k is not None and checks.integer("k", k) != fixed:
        raise ValueError(f"k must be {fixed}, or None: {why}. Received: k={k}.")
    return fixed
