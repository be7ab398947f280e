"""A text and its translation, line by line, as one stream."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tf_moe import checks
from tf_moe.text.split import check_part, hashed_part
from tf_moe.text.text import Text, check_text


class PairCounts(NamedTuple):
    """Lines of a parallel text: pairs, and those left out because one side at least is blank.

    Example:
        >>> sides = tf_moe.text.Text(["pairs/train.en"]), tf_moe.text.Text(["pairs/train.fr"])
        >>> tf_moe.text.ParallelText(*sides, "en", "fr").count()
        PairCounts(pairs=3, blank=0)
    """

    pairs: int
    blank: int


@dataclass(frozen=True)
class ParallelText:
    """Pairs of lines, the source and its translation; line n of one file belongs to line n of the other.

    Pairs of which one side is blank are left out: aligned corpora have them where a sentence was not translated.

    Args:
        source: What is translated.
        target: The translation, with as many lines.
        source_language: Name of the source's language, such as `"en"`.
        target_language: Name of the target's.
        part: `"train"`, `"validation"` or `"test"`: only the pairs that a hash of the line of `split_by` gives to this
            part (see `tf_moe.text.split`). Default None: all pairs.
        split_by: The text whose lines are hashed for `part`, with as many lines too: in the same language for all
            directions, so that what is tested in one is not trained on in another. Default None: the source.

    Raises:
        TypeError: `source`, `target` or `split_by` is no Text.
        ValueError: One of them is part of a text by itself, and so would lose its alignment; an unknown part; on
            reading: the texts have not as many lines, and what `Text` raises.

    Example:
        >>> sides = tf_moe.text.Text(["pairs/train.en"]), tf_moe.text.Text(["pairs/train.fr"])
        >>> text = tf_moe.text.ParallelText(*sides, "en", "fr")
        >>> next(text.pairs())
        ('two men are in a boat', 'deux hommes sont dans un bateau')
    """

    source: Text
    target: Text
    source_language: str
    target_language: str
    part: str | None = None
    split_by: Text | None = None

    def __post_init__(self):
        for text in self._texts():
            check_text(text)
            if text.part is not None:
                raise ValueError(
                    "Aligned texts must be whole files: pass part to ParallelText, not to Text. "
                    f"Received: a text with part={text.part!r}"
                )
        check_part(self.part)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """The pairs of this part without white space at their ends, and without those that have a blank side."""
        for source, target in self._aligned():
            if source and target:
                yield source, target

    def blocks(self, size: int = 2048) -> Iterator[tuple[list[str], list[str]]]:
        """The pairs as lists of at most so many sources and their targets: few Python steps for many tokens."""
        pairs = self.pairs()
        while block := list(itertools.islice(pairs, size)):
            sources, targets = zip(*block, strict=True)
            yield list(sources), list(targets)

    def count(self) -> PairCounts:
        """Reads the whole text, and so tells, before a training begins, whether the files are aligned.

        Raises:
            ValueError: there are no pairs.
        """
        pairs = blank = 0
        for source, target in self._aligned():
            both = bool(source and target)
            pairs, blank = pairs + both, blank + (not both)
        if not pairs:
            of_part = f" for {self.part}" if self.part else ""
            raise ValueError(f"No pairs of lines{of_part} in {self._names()}: {blank} pairs have a blank side.")
        return PairCounts(pairs, blank)

    def _aligned(self) -> Iterator[tuple[str, str]]:
        """All pairs of this part, blank ones too."""
        for lines in itertools.zip_longest(*(text.lines() for text in self._texts())):
            if None in lines:
                counts = [sum(1 for _ in text.lines()) for text in self._texts()]
                raise ValueError(
                    "Texts must be aligned, line by line. Received: "
                    f"{self._names()} with {', '.join(map(str, counts))} lines."
                )
            source, target, key = (*lines, lines[0])[:3]
            if self.part is None or hashed_part(key.strip()) == self.part:
                yield source.strip(), target.strip()

    def _texts(self) -> list[Text]:
        return [text for text in (self.source, self.target, self.split_by) if text is not None]

    def _names(self) -> str:
        return ", ".join(str([str(file) for file in text.files])[1:-1] for text in self._texts())


def check_parallel_texts(texts) -> list[ParallelText]:
    """One or several parallel texts as a list; raises ValueError where there is none, TypeError for anything else."""
    if not isinstance(texts, ParallelText) and (isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable)):
        raise TypeError(
            "texts must be a ParallelText, or a list of them. "
            f"Received: texts={texts!r}. ParallelCorpus.parallel returns some."
        )
    texts = [texts] if isinstance(texts, ParallelText) else list(texts)
    if not texts:
        raise ValueError("texts must be at least one ParallelText. Received: texts=[]")
    for number, text in enumerate(texts):
        checks.instance(f"texts[{number}]", text, ParallelText, "ParallelCorpus.parallel returns some.")
    return texts
