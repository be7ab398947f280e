"""A folder of aligned files, one for each language: parts, languages and directions by the names of the files."""

import itertools
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePath

from tf_moe.text.folder import visible_files
from tf_moe.text.parallel_text import ParallelText
from tf_moe.text.split import PARTS, split_by_name
from tf_moe.text.text import Text

# {name}.{language}, plain or compressed: "train.fr.gz", "europarl-v7.fr-en.fr", "news.pt_BR.xz".
_NAME = re.compile(r"(?P<name>.+)\.(?P<language>(?!(?:gz|xz|txt)\b)[a-z]{2,3}([-_][A-Za-z]{2,4})?)(\.gz|\.xz)?")


@dataclass(frozen=True)
class ParallelCorpus:
    """Aligned files of several languages, with parts for training, validation and test.

    Args:
        files: By name ("train", "test_2016_flickr") and language, paths; the files of a name are aligned, line by line.
        parts: The names of each part. None: all names are of all parts, and a hash of the lines says whose line it is.

    Example:
        >>> corpus = tf_moe.text.ParallelCorpus.from_directory("pairs")
        >>> corpus.languages
        ('en', 'fr')
        >>> (train,) = corpus.parallel("train", "en", "fr")
    """

    files: Mapping[str, Mapping[str, Path]]
    parts: Mapping[str, tuple[str, ...]] | None = None

    @classmethod
    def from_directory(
        cls,
        directory: str | PathLike,
        *,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
    ) -> "ParallelCorpus":
        """All files of a directory whose names end in a language: `train.fr`, `train.fr.gz`, `train.fr.xz`.

        What stands before the language is the name; where only one language has that name, as in `README.md`, it is
        left out. Names are of a part by the words in them, as in `tf_moe.text.split`: `train`, `val`,
        `test_2016_flickr`. Where no name has such a word, the pairs of all of them are split by a hash.

        Args:
            directory: Where the files are, or directories with them.
            train: Name of the training files. Default None: by the words.
            validation: Name of the validation files.
            test: Name of the test files; needed where there are several.

        Raises:
            FileNotFoundError: there is no such directory.
            ValueError: no two files have one name, there is no file of a name asked for, or none for a part.
        """
        root = Path(directory)
        if not root.is_dir():
            raise FileNotFoundError(f"No such directory: {str(root)!r}. Give one that holds aligned text files.")
        files = defaultdict(dict)
        for file in visible_files(root):
            if match := _NAME.fullmatch(file.as_posix()):
                of_name, language, path = files[match["name"]], match["language"], root / file
                if other := of_name.get(language):
                    raise ValueError(f"{str(other)!r} and {str(path)!r} are for the same lines. Take one away.")
                of_name[language] = path
        files = {name: of_name for name, of_name in files.items() if len(of_name) > 1}
        if not files:
            raise ValueError(
                f"No aligned files in {str(root)!r}. Name them by part and language, such as train.en and train.fr.gz."
            )
        return cls(files, _parts(files, {"train": train, "validation": validation, "test": test}))

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the training part, in alphabetical order."""
        return tuple(sorted({language for name in self._names("train") for language in self.files[name]}))

    def directions(self, pivot: str | None = None) -> list[tuple[str, str]]:
        """All (source, target) that the training part has; with a pivot those to and from this language.

        Raises:
            ValueError: the pivot is none of the languages.
        """
        if pivot is not None:
            self._check_language("pivot", pivot)
        found = {pair for name in self._names("train") for pair in itertools.permutations(self.files[name], 2)}
        return sorted(pair for pair in found if pivot is None or pivot in pair)

    def parallel(self, part: str, source: str, target: str) -> list[ParallelText]:
        """The texts of a part in one direction: one of each name, but for validation and test files one alone.

        Raises:
            ValueError: an unknown part or language, one language twice, no files for this direction, or several for
                validation or test, of which one has to be chosen.
        """
        if part not in PARTS:
            raise ValueError(f"part must be one of {PARTS}. Received: part={part!r}")
        self._check_language("source", source)
        self._check_language("target", target)
        if source == target:
            raise ValueError(f"source and target must be two languages. Received: {source!r} twice")
        names = [name for name in self._names(part) if {source, target} <= self.files[name].keys()]
        if not names:
            raise ValueError(f"No {part} files have both {source!r} and {target!r}. Their names: {self._names(part)}")
        if part != "train" and self.parts and len(names) > 1:
            raise ValueError(f"Several {part} files: {names}. Choose one: from_directory(..., {part}={names[0]!r})")
        return [self._text(name, part, source, target) for name in names]

    def _text(self, name: str, part: str, source: str, target: str) -> ParallelText:
        texts = {language: Text([path]) for language, path in self.files[name].items()}
        if self.parts:
            return ParallelText(texts[source], texts[target], source, target)
        # The same for all directions, and for all names where they have a language in common: a sentence of it that
        # stands under two names is then tested under both or under none.
        common = set.intersection(*(set(files) for files in self.files.values())) or {*texts}
        return ParallelText(texts[source], texts[target], source, target, part, texts[min(common)])

    def _names(self, part: str) -> list[str]:
        return sorted(self.parts[part] if self.parts else self.files)

    def _check_language(self, argument: str, language: str) -> None:
        if language not in self.languages:
            raise ValueError(f"{argument} must be one of {list(self.languages)}. Received: {argument}={language!r}")


def _parts(files: Mapping[str, Mapping[str, Path]], wanted: Mapping[str, str | None]) -> dict | None:
    """The names of each part, or None where neither the names nor the user say."""
    # A word of a name counts, so the name has to look like a path to the rule for files.
    found = split_by_name([PurePath(name) for name in files])
    if found is None and not any(wanted.values()):
        return None
    parts = {part: tuple(path.as_posix() for path in (found or {}).get(part, ())) for part in PARTS}
    for part, name in wanted.items():
        if name is not None:
            if name not in files:
                raise ValueError(f"{part} must be one of {sorted(files)}. Received: {part}={name!r}")
            parts[part] = (name,)
    if found is None and wanted["train"] is None:
        parts["train"] = tuple(name for name in files if name not in wanted.values())
    for part, names in parts.items():
        if not names:
            raise ValueError(
                f"No files for {part} among {sorted(files)}: put the word {part!r} in a name, or pass {part}=."
            )
    return parts
