"""The tokens a model knows, and their numbers."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import tensorflow as tf

from tf_moe import checks
from tf_moe.text.text import Text, check_text
from tf_moe.text.tokenizer import Tokenizer, as_lines

# What no token may hold: the end of a line, on which it is saved, and surrogates, which UTF-8 cannot write.
_NOT_IN_TOKENS = re.compile("[\n\ud800-\udfff]")


class Vocabulary:
    """Tokens and their ids: 0 is padding, 1 an unknown token, 2 the end of a sentence, then by frequency.

    These three specials are written `<pad>`, `<unk>` and `</s>`. In a text `<unk>` is unknown (WikiText has
    it), and so are `<pad>` and `</s>`: only the end of a line ends a sentence, and no text makes padding. The
    tokenizer "code" cuts them into parts.

    Args:
        tokens: All tokens in the order of their ids; the specials are the first three.
        tokenizer: The kind of tokens, see `tf_moe.text.Tokenizer`. Default `"words"`.
        num_tokens: The length of the training text: its tokens and one `</s>` for each line, blank lines too.
            Default 0: not known.

    Attributes:
        table: The lookup from tokens to ids. What is exported with `encode` in it has to track this table.

    Raises:
        ValueError: the specials are not in their places, a token is no string, holds a line end or a surrogate or
            stands there twice, or `num_tokens` is no integer of at least 0.

    Example:
        >>> vocabulary = tf_moe.text.build_vocabulary(corpus.train, size=16)
        >>> ids = vocabulary.encode(["the cat sat"])
        >>> vocabulary.decode(ids[0])
        'the cat sat'
    """

    PAD, UNK, END = 0, 1, 2
    specials = ("<pad>", "<unk>", "</s>")

    def __init__(self, tokens: Sequence[str], tokenizer: str = "words", num_tokens: int = 0):
        self.tokens = tuple(tokens)
        self.tokenizer = Tokenizer(tokenizer)
        self.num_tokens = checks.integer("num_tokens", num_tokens, least=0)
        if self.tokens[:3] != self.specials:
            raise ValueError(f"The first tokens must be {self.specials}. Received: {self.tokens[:3]}")
        if wrong := [token for token in self.tokens if not isinstance(token, str)]:
            raise ValueError(f"Tokens must be strings. Received: {wrong[:5]}")
        if wrong := [token for token in self.tokens if _NOT_IN_TOKENS.search(token)]:
            raise ValueError(
                "Tokens cannot hold line ends, or surrogates, which are no characters. "
                f"Received: {wrong[:5]}. Leave them out."
            )
        if twice := [token for token, count in Counter(self.tokens).items() if count > 1]:
            raise ValueError(f"A token can have one id only. Received more than once: {twice[:5]}")
        ids = [self.UNK] * 3 + list(range(3, len(self.tokens)))  # no text writes a special
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(self.tokens, ids, tf.string, tf.int32), default_value=self.UNK
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, lines: tf.Tensor | Sequence[str]) -> tf.RaggedTensor:
        """Ids [N, None], int32, of lines [N]: of each line its tokens and `</s>`. Works in tf.data graphs.

        Raises:
            ValueError: lines are not [N].
        """
        ids = self.table.lookup(self.tokenizer.tokenize(as_lines(lines)))
        ends = tf.fill([ids.nrows(), 1], self.END)
        return tf.concat([ids, ends], axis=1)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids [T]: tokens with spaces between, a new line for `</s>`, nothing for padding.

        A last `</s>` ends the text without a new line. Encoding the lines of the text gives the same ids again if they
        end in `</s>` and hold no padding and, with the tokenizer "code", no unknown token.

        Raises:
            ValueError: ids are not integers [T] from 0 to below the size of the vocabulary.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(f"ids must be integers [T]. Received: {ids.dtype} of shape {ids.shape}: {ids!r}")
        unknown = ids[(ids < 0) | (ids >= len(self))]
        if unknown.size:
            raise ValueError(f"ids must be at least 0 and below {len(self)}. Received: {unknown[:5].tolist()}")
        names = [self.tokens[i] for i in ids[ids != self.PAD]]
        if names and names[-1] == self.specials[self.END]:
            names.pop()
        text = " ".join("\n" if name == self.specials[self.END] else name for name in names)
        return text.replace(" \n", "\n").replace("\n ", "\n")

    def count_tokens(self, text: Text) -> int:
        """The length of a text, as `num_tokens` is of the training text; reads it once.

        Raises:
            TypeError: `text` is no Text.
        """
        check_text(text)
        return sum(int(self.encode(tf.constant(lines)).flat_values.shape[0]) for lines in text.blocks())

    def save(self, path: str | PathLike) -> None:
        """Writes a text file: a line of JSON (tokenizer, num_tokens), then one token a line, id 0 first."""
        head = json.dumps({"tokenizer": self.tokenizer.kind, "num_tokens": self.num_tokens})
        Path(path).write_text("\n".join([head, *self.tokens]) + "\n", encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, path: str | PathLike) -> "Vocabulary":
        """Reads what `save` wrote; raises ValueError, which names the file, where it is something else."""
        data = Path(path).read_bytes()
        try:
            head, *tokens = data.decode("utf-8").removesuffix("\n").split("\n")
            return cls(tokens, **json.loads(head))
        except (UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
            head = data.split(b"\n")[0][:80].decode("utf-8", "backslashreplace")
            raise ValueError(f"{str(path)!r} is not a saved vocabulary. Its first line: {head!r}") from error
        except ValueError as error:
            raise ValueError(f"{str(path)!r} does not hold a vocabulary: {error}") from error


def build_vocabulary(text: Text, size: int | None, tokenizer: str = "words") -> Vocabulary:
    """The most frequent tokens of a text, the training part; equally frequent ones in alphabetical order.

    Args:
        text: Read once, as a stream; only the distinct tokens are held in memory.
        size: Number of ids with the three specials. None: every token of the text.
        tokenizer: `"words"` (default) or `"code"`, see `tf_moe.text.Tokenizer`.

    Raises:
        ValueError: `size` is no integer, larger than what the text has, or smaller than 4.
        TypeError: `text` is no Text.

    Example:
        >>> tf_moe.text.build_vocabulary(corpus.train, size=8).tokens
        ('<pad>', '<unk>', '</s>', 'the', 'a', 'boat', 'on', 'are')
    """
    check_text(text)
    if size is not None:
        size = checks.integer("size", size, least=4, hint=": three specials and one token; or None for all")
    tokenize = Tokenizer(tokenizer).tokenize
    counts, num_tokens = Counter(), 0
    for lines in text.blocks():
        tokens = tokenize(tf.constant(lines)).flat_values.numpy()
        counts.update(tokens.tolist())
        num_tokens += len(tokens) + len(lines)
    for special in Vocabulary.specials:
        del counts[special.encode()]
    if size is not None and size > len(counts) + 3:
        raise ValueError(
            f"The text has only {len(counts)} distinct tokens, with the three specials {len(counts) + 3}. "
            f"Pass at most that, or None for all. Received: size={size}"
        )
    # UTF-8 bytes sort as the characters do.
    ordered = sorted(counts, key=lambda token: (-counts[token], token))
    frequent = [token.decode("utf-8") for token in ordered[: None if size is None else size - 3]]
    return Vocabulary([*Vocabulary.specials, *frequent], tokenizer, num_tokens)
