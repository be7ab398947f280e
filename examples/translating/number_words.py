"""The paper's seven languages for a machine without a corpus: numbers written in words, aligned by line."""

import gzip
import random
from pathlib import Path

LANGUAGES = ("de", "en", "es", "fr", "ja", "ko", "pt")
HELD_OUT = {"val": 100, "test": 500}
MOST = 20_000  # numbers for training


def write_numbers(directory: Path, limit: int, held_out: dict[str, int] = HELD_OUT, seed: int = 0) -> None:
    """Files such as `train.fr.gz` with numbers from 0 to below the limit; no number is in two parts.

    All numbers below 100, of which longer ones are made, are for training.

    Raises:
        ValueError: If there are too few numbers below the limit.
        ImportError: If num2words is not installed.
    """
    basic, count = 100, min(MOST, limit - sum(held_out.values()))
    if count < basic:
        least = basic + sum(held_out.values())
        raise ValueError(f"--limit must be at least {least}, so that some are left to test. Received: --limit {limit}.")
    try:
        from num2words import num2words
    except ImportError as error:
        raise ImportError("Numbers in words take the package num2words: pip install 'tf_moe[translation]'.") from error
    parts = {}
    drawn = random.Random(seed).sample(range(basic, limit), count - basic + sum(held_out.values()))
    directory.mkdir(parents=True, exist_ok=True)
    for part, size in held_out.items():
        parts[part], drawn = drawn[:size], drawn[size:]
    parts["train"] = [*range(basic), *drawn]
    for part, chosen in parts.items():
        for language in LANGUAGES:
            with gzip.open(directory / f"{part}.{language}.gz", "wt", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{num2words(number, lang=language)}\n" for number in chosen)
