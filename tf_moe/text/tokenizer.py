"""How a line becomes tokens."""

import re
import string
from collections.abc import Sequence

import tensorflow as tf
import tensorflow_text as tf_text

# What str.split() splits at. tf_text.WhitespaceTokenizer 2.21 leaves all bytes of a no-break space but the
# last one in the token before it, and RE2's own \s is ASCII only.
SPACE = r"[\t-\r\x1c-\x20\x{85}\pZ]+"
_MARKS = "|".join(f"{re.escape(mark)}+" for mark in string.punctuation if mark != "_")


class Tokenizer:
    """Splits lines into tokens, in a tf.data graph or outside of it.

    White space, indentation too, only separates and is not kept; nothing is lower-cased.

    Args:
        kind: `"words"`: whatever stands between white space, for text that is tokenised already, such as WikiText and
            the One Billion Word benchmark. `"code"`: also cuts before and after every run of one ASCII punctuation
            mark: `if x_1 == "":` gives `if`, `x_1`, `==`, `""`, `:`. A run is one token, and not each of its marks,
            because all dashes of a line but the first would be predicted for free and flatter a perplexity.

    Raises:
        ValueError: an unknown kind.

    Example:
        >>> tf_moe.text.Tokenizer("code").tokenize(["def f(x):"])
        <tf.RaggedTensor [[b'def', b'f', b'(', b'x', b')', b':']]>
    """

    kinds = ("words", "code")

    def __init__(self, kind: str):
        if kind not in self.kinds:
            raise ValueError(f"kind must be one of {self.kinds}. Received: kind={kind!r}")
        self.kind = kind

    def tokenize(self, lines: tf.Tensor | Sequence[str]) -> tf.RaggedTensor:
        """Tokens [N, None] of UTF-8 lines [N], both strings; a blank line has none."""
        if self.kind == "words":
            return tf_text.regex_split(lines, SPACE)
        return tf_text.regex_split(lines, f"{_MARKS}|{SPACE}", keep_delim_regex_pattern=_MARKS)


def as_lines(lines: tf.Tensor | Sequence[str]) -> tf.Tensor:
    """Strings [N] as a tensor, also of no lines; raises ValueError for another rank, such as that of one line alone."""
    lines = tf.convert_to_tensor(lines, tf.string)
    if lines.shape.rank not in (1, None):
        raise ValueError(f"lines must be strings [N]. Received: shape {lines.shape}. Pass one line as [line].")
    return lines
