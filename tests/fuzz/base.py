"""How long the tests here search: `FUZZ=100 python -m pytest tests/fuzz` tries a hundred times as many examples."""

import os

import hypothesis

FUZZ = int(os.environ.get("FUZZ", "1"))


def examples(number: int) -> hypothesis.settings:
    """Settings for so many examples, new ones in every run, and `FUZZ` times as many where that is set."""
    return hypothesis.settings(
        max_examples=number * FUZZ,
        deadline=None,
        database=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
    )
