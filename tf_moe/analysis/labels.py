"""Labels of positions that experts may be specialised in: words, their classes by form, places in the sequence."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_moe import checks

__all__ = ["WORD_CLASSES", "places", "tokens", "word_class", "word_classes"]

WORD_CLASSES = (
    "special",
    "number",
    "punctuation",
    "determiner",
    "pronoun",
    "preposition",
    "conjunction",
    "auxiliary",
    "capitals",
    "capitalised",
    "digits and letters",
    "-ing",
    "-ed",
    "-ly",
    "noun suffix",
    "adjective suffix",
    "-s",
    "other",
)
"""The classes of `word_class`, which the integers of `word_classes` count from 0.

Example:

>>> tf_moe.analysis.labels.WORD_CLASSES[:3]
('special', 'number', 'punctuation')
"""

_FUNCTION_WORDS = {
    "determiner": "a an the this that these those each every either neither some any no all both half such what which",
    "pronoun": "i me my mine myself you your yours yourself he him his himself she her hers herself it its itself we "
    "us our ours ourselves they them their theirs themselves who whom whose one someone anyone everyone nobody "
    "something anything everything nothing",
    "preposition": "of in to for with on at from by about as into through after over between out against during "
    "without before under around among across behind beyond near off up down above below toward towards upon within "
    "along onto inside outside until since despite per",
    "conjunction": "and or but nor so yet if because although though while whereas unless whether than when where",
    "auxiliary": "be am is are was were been being have has had having do does did will would shall should can could "
    "may might must not n't 's 're 've 'll 'd 'm",
}
_CLASS_OF_WORD = {word: name for name, words in reversed(_FUNCTION_WORDS.items()) for word in words.split()}
_NOUN = ("tion", "sion", "ment", "ness", "ity", "ism", "ist", "ship", "hood", "ance", "ence")
_ADJECTIVE = ("able", "ible", "ful", "less", "ous", "ive", "ish", "ic", "al")
# Shorter words that end so are mostly of another kind: "sing", "red", "fly", "gas".
_SUFFIXES = (("ing", 5, "-ing"), ("ed", 5, "-ed"), ("ly", 5, "-ly"))
_SUFFIXES += tuple((suffix, len(suffix) + 3, "noun suffix") for suffix in _NOUN)
_SUFFIXES += tuple((suffix, len(suffix) + 3, "adjective suffix") for suffix in _ADJECTIVE)


class Label(NamedTuple):
    """A label of the positions of a layer.

    Attributes:
        of: From what the model is called with to integers `(batch, time)`, one for each position of the layer, or
            `(batch,)`, one for each row; where the model calls the layer several times, for each call the same.
            Positions with a negative one are left out. Called once for each batch, in their order and for all layers
            together, so that it may also take labels from elsewhere; by a callback again at every look.
        names: What the integers mean, for a reader. Default None: the integers themselves.

    Example:

    >>> parity = tf_moe.analysis.Label(lambda ids: ids % 2, names=("even", "odd"))
    >>> [parity.name(value) for value in parity.of(np.array([[4, 7]]))[0]]
    ['even', 'odd']
    """

    of: Callable[[Any], Any]
    names: Sequence[str] | None = None

    def name(self, value: int) -> str:
        """What an integer means."""
        known = self.names is not None and 0 <= value < len(self.names)
        return self.names[value] if known else str(value)


def word_class(word: str) -> str:
    """The class of an English word by its form alone, one of `WORD_CLASSES`.

    What is written in angle brackets, and nothing, is special. Then come numbers, punctuation, the function words (each
    in the first class that has it: "that" is a determiner), words in capitals, capitalised ones, digits with letters,
    and what is left by suffix: nouns such as "-tion", adjectives such as "-ous". It knows no context and no dictionary,
    so that "walks" has the class of "tables", and "spring" that of "going". Marks of word pieces are taken off.

    Example:

    >>> [tf_moe.analysis.labels.word_class(word) for word in ("The", "1,024", "walking", "Paris", "</s>", "...")]
    ['determiner', 'number', '-ing', 'capitalised', 'special', 'punctuation']
    """
    word = word.removeprefix("\u2581").removeprefix("##").strip()
    if not word or (len(word) > 2 and word[0] == "<" and word[-1] == ">"):
        return "special"
    lower = word.lower().replace("\u2019", "'")
    if lower in _CLASS_OF_WORD:
        return _CLASS_OF_WORD[lower]
    if not any(c.isalpha() for c in word):
        return "number" if any(c.isnumeric() for c in word) else "punctuation"
    if any(c.isnumeric() for c in word):
        return "digits and letters"
    if len(word) > 1 and word.isupper():
        return "capitals"
    if word[0].isupper():
        return "capitalised"
    for suffix, length, name in _SUFFIXES:
        if lower.endswith(suffix) and len(lower) >= length:
            return name
    plural = len(lower) > 3 and lower[-1] == "s" and lower[-2] not in "su"
    return "-s" if plural else "other"


def tokens(words: Sequence[str] | None = None, ids_of: Callable[[Any], Any] = lambda inputs: inputs) -> Label:
    """The token itself.

    Args:
        words: The word of each id, as a vocabulary's `tokens`. Default None: ids are shown.
        ids_of: What finds the ids `(batch, time)` of the layer's positions in the model's inputs. Default: the inputs.

    Example:

    >>> tf_moe.analysis.labels.tokens(("<pad>", "the", "cat")).name(2)
    'cat'
    """
    return Label(ids_of, words)


def word_classes(words: Sequence[str], ids_of: Callable[[Any], Any] = lambda inputs: inputs) -> Label:
    """The `word_class` of each token.

    Args:
        words: The word of each id, as a vocabulary's `tokens`.
        ids_of: As in `tokens`.

    Raises:
        ValueError: When used, if an id has no word.

    Example:

    >>> label = tf_moe.analysis.labels.word_classes(("<pad>", "the", "cat"))
    >>> [label.name(value) for value in label.of(np.array([[1, 2, 0]]))[0]]
    ['determiner', 'other', 'special']
    """
    classes = np.array([WORD_CLASSES.index(word_class(word)) for word in words], "int32")

    def of(inputs):
        ids = np.asarray(ids_of(inputs))
        if ids.size and not 0 <= ids.min() <= ids.max() < len(classes):
            raise ValueError(
                f"words must have one for each id. Received: {len(classes)} words, ids {ids.min()} to {ids.max()}."
            )
        return classes[ids]

    return Label(of, WORD_CLASSES)


def places(ids_of: Callable[[Any], Any] = lambda inputs: inputs, longest: int = 1024) -> Label:
    """The place in the row, in doubling steps: 0, 1, 2-3, 4-7, ...

    Args:
        ids_of: As in `tokens`; only the shape is used.
        longest: Where the last step begins at the latest. Default 1024.

    Example:

    >>> label = tf_moe.analysis.labels.places()
    >>> [label.name(value) for value in label.of(np.zeros((1, 6)))[0]]
    ['0', '1', '2-3', '2-3', '4-7', '4-7']
    """
    steps = checks.integer("longest", longest).bit_length()

    def of(inputs):
        rows, time = np.shape(ids_of(inputs))
        digits = np.frexp(np.arange(time, dtype="float64"))[1]  # in binary: 0, 1, 2, 2, 3, 3, 3, 3, 4, ...
        return np.broadcast_to(np.minimum(digits, steps), (rows, time))

    names = ["0", "1"] + [f"{2**n}-{2 ** (n + 1) - 1}" for n in range(1, steps - 1)]
    return Label(of, [*names[:steps], f"{2 ** (steps - 1)} and more"])
