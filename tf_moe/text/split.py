"""Which text is for training, which for validation and which for testing: the one rule of this package.

1. A file whose path below the given directory has one of these words (whole words, in small or capital
   letters; the last one decides) belongs to the part of that name: `train`, `training`; `val`, `valid`,
   `validation`, `dev`; `test`.
2. `heldout` is the word of the One Billion Word benchmark. Where no file is named for testing, the first
   held-out file in sorted order is the test part: in the whole benchmark `00000-of-00050`, as is the custom.
   The other held-out files are for validation where none is named for that. Held-out files that nothing else
   stands beside are files without a word.
3. Beside files with a word, a file without one is for training if no file is named for training; otherwise (a
   README, say) it is left out.
4. Where no file has a word, a hash of each file's path below the directory gives about 90 % of the files to
   training and 5 % each to validation and test, whatever the order of listing and whatever other files there
   are.
5. Of fewer than 40 such files the shares would be a matter of luck: each part reads all of them, and the same
   hash of a line says whose line it is. Equal lines fall in one part, and blank lines in none. So it is, too,
   where more files leave a part without one.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePath

PARTS = ("train", "validation", "test")

_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "heldout": "heldout",
}


def split(files: Sequence[PurePath]) -> dict[str, tuple[list[PurePath], str | None]]:
    """The whole rule: each part's files (maybe none), and its name where lines are split by hash."""
    if named := split_by_name(files):
        return {part: (named[part], None) for part in PARTS}
    hashed = split_by_hash(files)
    if len(files) >= 40 and all(hashed.values()):
        return {part: (hashed[part], None) for part in PARTS}
    return {part: (sorted(files), part) for part in PARTS}


def split_by_name(files: Sequence[PurePath]) -> dict[str, list[PurePath]] | None:
    """Rules 1 to 3: the files of each part (maybe none), or None where names do not decide."""
    named = defaultdict(list)
    for file in sorted(files):
        named[_word(file)].append(file)
    if set(named) <= {None} or set(named) == {"heldout"}:
        return None
    heldout = named["heldout"]
    test = named["test"] or heldout[:1]
    return {
        "train": named["train"] or named[None],
        "validation": named["validation"] or [file for file in heldout if file not in test],
        "test": test,
    }


def split_by_hash(files: Sequence[PurePath]) -> dict[str, list[PurePath]]:
    """Rule 4: the files of each part (maybe none) by the hash of their paths, which are relative."""
    parts = {part: [] for part in PARTS}
    for file in sorted(files):
        parts[hashed_part(file.as_posix())].append(file)
    return parts


def hashed_part(key: str) -> str:
    """The part that a path or a line falls in by its hash: 90 % train, 5 % validation, 5 % test.

    The same on every machine and in every run, unlike Python's own `hash`.
    """
    digest = hashlib.sha512(key.encode("utf-8", "surrogateescape")).digest()
    return {0: "validation", 1: "test"}.get(int.from_bytes(digest[:8]) % 20, "train")


def check_part(part: str | None) -> None:
    """Raise ValueError unless it is the name of a part, or None for all."""
    if part not in (None, *PARTS):
        raise ValueError(f"part must be None or one of {PARTS}. Received: part={part!r}")


def _word(file: PurePath) -> str | None:
    words = [word for word in re.findall("[a-z]+", file.as_posix().lower()) if word in _WORDS]
    return _WORDS[words[-1]] if words else None
