"""Small text files for the tests of the text pipeline, and the slow reading that they are compared with."""

import gzip
import lzma
import tempfile
from pathlib import Path

from tf_moe.text import Text


def new_folder(test):
    """An empty folder of its own, until the test (or the class of tests) has ended."""
    folder = tempfile.TemporaryDirectory()
    (test.addClassCleanup if isinstance(test, type) else test.addCleanup)(folder.cleanup)
    return Path(folder.name)


def write(path, lines):
    """Writes lines to a file, compressed as its suffix says, and returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(f"{line}\n" for line in lines).encode("utf-8")
    compress = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(compress(data))
    return path


def text_of(directory, lines, name="text.txt"):
    """A Text of one file with these lines."""
    return Text([write(Path(directory) / name, lines)])


def random_lines(rng, count, longest=12, words=30):
    """Lines of made-up words, some of them blank."""
    return [" ".join(f"w{word}" for word in rng.integers(words, size=rng.integers(longest + 1))) for _ in range(count)]


def ids_of(lines, vocabulary):
    """What encoding means: the ids of each line's words with 2 for its end, in plain Python."""
    return [
        [vocabulary.tokens.index(w) if w in vocabulary.tokens[3:] else 1 for w in line.split()] + [2] for line in lines
    ]
