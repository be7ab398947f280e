"""A corpus: training, validation and test text, from a directory or from Python's own standard library."""

import sysconfig
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from tf_moe.text.folder import visible_files
from tf_moe.text.split import split, split_by_hash
from tf_moe.text.text import Text


@dataclass(frozen=True)
class Corpus:
    """The three parts of a corpus.

    Args:
        train: What the model and the vocabulary are made from.
        validation: What choices are made by.
        test: What is reported.

    Example:
        >>> corpus = tf_moe.text.Corpus.standard_library()
        >>> first = next(corpus.train.lines())
    """

    train: Text
    validation: Text
    test: Text

    @classmethod
    def from_directory(cls, directory: str | PathLike) -> "Corpus":
        """All files below a directory but hidden ones, split by the rule of `tf_moe.text.split`.

        Files are plain, `.gz` or `.xz`, whatever the rest of their names. WikiText (`train.txt.xz`,
        `valid.txt.xz`, `test.txt.xz`) and the One Billion Word benchmark (`news.en-00001-of-00100`,
        `news.en.heldout-00000-of-00050`) fall in their usual parts.

        Raises:
            FileNotFoundError: there is no such directory, or no file in it.
            ValueError: a part would have no text.
        """
        root = Path(directory)
        if not root.is_dir():
            raise FileNotFoundError(f"No such directory: {str(root)!r}. Give one that holds text files.")
        files = visible_files(root)
        if not files:
            raise FileNotFoundError(
                f"No files in {str(root)!r}. Put text there, one sentence a line: plain, .gz or .xz."
            )
        texts = {}
        for part, (chosen, line_part) in split(files).items():
            if not chosen:
                raise ValueError(
                    f"Of {len(files)} files in {str(root)!r} none is for {part}, while some names say what "
                    f"they are for. Name one with the word {part!r}, or none with any, to split by hash."
                )
            texts[part] = Text([root / file for file in chosen], line_part)
            if not any(line.strip() for line in texts[part].lines()):
                names = [str(file) for file in chosen]
                raise ValueError(
                    f"The {part} part of {str(root)!r} has no text; its files: {names}. Give it more lines."
                )
        return cls(**texts)

    @classmethod
    def standard_library(cls) -> "Corpus":
        """The Python sources of the running interpreter's standard library, split by file.

        Some ten megabytes that every machine with Python has. They differ from version to version, so
        perplexities compare only within one. Left out are tests (they repeat themselves), installed packages,
        tables of numbers (`encodings`) and generated files (`pydoc_data`, the build's configuration).

        Raises:
            FileNotFoundError: the interpreter has no library sources beside it (embedded or frozen Python).
        """
        root = Path(sysconfig.get_paths()["stdlib"])
        files = [file.relative_to(root) for file in root.rglob("*.py") if file.stat().st_size]
        parts = split_by_hash([file for file in files if _is_library_code(file)])
        if not all(parts.values()):
            raise FileNotFoundError(
                f"The standard library's sources are not in {str(root)!r}: it has {len(files)} .py files. "
                "Use Corpus.from_directory with a text of your own."
            )
        return cls(**{part: Text([root / file for file in chosen]) for part, chosen in parts.items()})


def _is_library_code(file: Path) -> bool:
    left_out = {"dist-packages", "encodings", "idle_test", "pydoc_data", "site-packages", "test", "tests"}
    return not left_out.intersection(file.parts) and not file.name.startswith("_sysconfigdata")
