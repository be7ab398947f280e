"""Text as a stream: plain and compressed files read line by line, never a whole corpus in memory."""

import gzip
import lzma
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from tf_moe import checks
from tf_moe.text.split import check_part, hashed_part


@dataclass(frozen=True)
class Text:
    """The lines of some UTF-8 files, one after another; a line is a sentence.

    Args:
        files: Paths, read in this order. Names that end in `.gz` and `.xz` are decompressed on the way.
        part: `"train"`, `"validation"` or `"test"`: only the lines that a hash of the line gives to this
            part, and no blank lines (see `tf_moe.text.split`). Default None: all lines, blank ones too.

    Raises:
        ValueError: no files, or an unknown part; on reading: bytes that are not UTF-8 text (the message names
            file and line), or a damaged compressed file.
        FileNotFoundError: one of the files does not exist.

    Example:
        >>> text = tf_moe.text.Text(["pairs/train.en", "pairs/val.en"])
        >>> next(text.lines())
        'two men are in a boat'
    """

    files: tuple[Path, ...]
    part: str | None = None

    def __post_init__(self):
        files = self.files
        listed = isinstance(files, Iterable) and not isinstance(files, str | bytes | PathLike)
        object.__setattr__(self, "files", tuple(files) if listed else files)  # it may be a generator
        if not listed or not all(isinstance(file, str | PathLike) for file in self.files):
            raise ValueError(f"files must be a list of paths, also where it is one. Received: {self.files!r}")
        object.__setattr__(self, "files", tuple(Path(file) for file in self.files))
        if not self.files:
            raise ValueError("A text needs at least one file. Received: files=[]")
        for file in self.files:
            if not file.is_file():
                raise FileNotFoundError(f"No such file: {str(file)!r}")
        check_part(self.part)

    def lines(self) -> Iterator[str]:
        """The lines without their line feeds; a carriage return before one stays: to all that reads it, white space."""
        for block in self.blocks():
            yield from block

    def blocks(self, size: int = 1 << 18) -> Iterator[list[str]]:
        """The lines in lists of about `size` bytes (256 KiB): few Python steps for many tokens."""
        for file in self.files:
            for block in _blocks(file, size):
                if self.part is not None:
                    sentences = (line.strip() for line in block)
                    block = [line for line in sentences if line and hashed_part(line) == self.part]
                if block:
                    yield block


def check_text(text: Text) -> None:
    """Raise TypeError unless it is a Text, rather than a path, a string or a whole Corpus."""
    checks.instance("text", text, Text, "Pass tf_moe.text.Text([path]), or a part of a Corpus, such as corpus.train.")


def _blocks(file: Path, size: int) -> Iterator[list[str]]:
    number = 1  # of the block's first line
    try:
        with _open(file) as stream:
            while lines := stream.readlines(size):
                text = _decode(b"".join(lines), file, number)
                # Only "\n" ends a line: str.splitlines would also cut at the form feeds of Python sources.
                yield text.removesuffix("\n").split("\n")
                number += len(lines)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{str(file)!r} is damaged, or not what its suffix says: {error}") from error


def _open(file: Path) -> BinaryIO:
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(file.suffix, open)
    return opener(file, "rb")


def _decode(data: bytes, file: Path, number: int) -> str:
    def refusal(what, start):
        line = number + data[:start].count(b"\n")
        return ValueError(
            f"{str(file)!r}, line {line}: {what}. Received bytes: {data[start : start + 4]!r}. "
            "Convert the file to UTF-8; if it is not text, take it out of the directory."
        )

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refusal("not UTF-8", error.start) from error
    if "\0" in text:  # an archive may be valid UTF-8 otherwise
        raise refusal("a zero byte", data.index(b"\0"))
    return text.removeprefix("\ufeff") if number == 1 else text
