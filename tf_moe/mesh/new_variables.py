"""Variables of experts while they are made: what is told past Keras, which stands between those who make them."""

import contextlib
import contextvars
from collections.abc import Iterator

_over_experts: contextvars.ContextVar[int | None] = contextvars.ContextVar("over_experts", default=None)
_slice: contextvars.ContextVar[tuple[int, int] | None] = contextvars.ContextVar("slice", default=None)


@contextlib.contextmanager
def split_over_experts(num_experts: int) -> Iterator[None]:
    """Variables made inside have this many experts as their first axis, to be split over the shards of a mesh."""
    token = _over_experts.set(num_experts)
    try:
        yield
    finally:
        _over_experts.reset(token)


def experts_of_new_variables() -> int | None:
    """Number of experts that the first axis of a variable made here stands for; None if it does not."""
    return _over_experts.get()


@contextlib.contextmanager
def initializing(start: int, stop: int) -> Iterator[None]:
    """Initializers called inside make just the values of experts `start` to `stop`."""
    token = _slice.set((start, stop))
    try:
        yield
    finally:
        _slice.reset(token)


def initialized_experts() -> tuple[int, int] | None:
    """First expert and the one after the last whose values are to be made here; None for all."""
    return _slice.get()
