import os
from pathlib import Path

import pytest

from tests import ROOT
from tests.base import TestCase
from tests.text.files import random_lines, write
from tf_moe.text import Corpus, build_vocabulary
from tf_moe.text import corpus as corpus_module

DATA = Path(os.environ.get("TF_MOE_TEST_DATA", ROOT.parent / "shared" / "data"))


def all_lines(corpus):
    return [list(text.lines()) for text in (corpus.train, corpus.validation, corpus.test)]


class FromDirectoryTest(TestCase):
    def setUp(self):
        super().setUp()
        self.directory = Path(self.get_temp_dir())

    def test_named_files_are_read_as_named(self):
        lines = {name: random_lines(self.rng, 20) for name in ("train", "valid", "test")}
        for (name, content), suffix in zip(lines.items(), (".txt", ".txt.gz", ".txt.xz"), strict=True):
            write(self.directory / "deep" / f"wiki.{name}{suffix}", content)
        write(self.directory / ".cache" / "train.txt", ["hidden"])
        self.assertEqual(all_lines(Corpus.from_directory(self.directory)), list(lines.values()))

    def test_many_files_are_split_by_file(self):
        for n in range(200):
            write(self.directory / f"{n}.txt", [f"line {n}"])
        corpus = Corpus.from_directory(str(self.directory))
        parts = [set(text.files) for text in (corpus.train, corpus.validation, corpus.test)]
        self.assertLen(set.union(*parts), 200)
        self.assertEqual(sum(map(len, parts)), 200)
        self.assertGreater(len(parts[0]), 150)

    def test_one_file_is_split_by_line(self):
        write(self.directory / "all.txt", [f"line {n}" for n in range(1000)])
        train, validation, test = all_lines(Corpus.from_directory(self.directory))
        self.assertCountEqual(train + validation + test, [f"line {n}" for n in range(1000)])
        self.assertGreater(min(len(validation), len(test)), 20)

    def test_what_cannot_be_read_is_refused(self):
        with self.assertRaisesRegex(FileNotFoundError, "No such directory.*nowhere"):
            Corpus.from_directory(self.directory / "nowhere")
        with self.assertRaisesRegex(FileNotFoundError, "No files in"):
            Corpus.from_directory(self.directory)
        write(self.directory / "train.txt", ["text"])
        write(self.directory / "valid.txt", ["text"])
        with self.assertRaisesRegex(ValueError, "none is for test"):
            Corpus.from_directory(self.directory)
        write(self.directory / "test.txt", ["", " "])
        with self.assertRaisesRegex(ValueError, r"test part of .* no text; its files: \['test.txt'\]"):
            Corpus.from_directory(self.directory)

    def test_too_few_lines_to_split(self):
        write(self.directory / "all.txt", ["the only line"])
        with self.assertRaisesRegex(ValueError, "has no text"):
            Corpus.from_directory(self.directory)


class StandardLibraryTest(TestCase):
    def test_parts_are_code_and_disjoint(self):
        corpus = Corpus.standard_library()
        parts = [set(text.files) for text in (corpus.train, corpus.validation, corpus.test)]
        self.assertEqual(sum(map(len, parts)), len(set.union(*parts)))
        names = {file.name for file in set.union(*parts)}
        self.assertContainsSubset({"argparse.py", "typing.py", "os.py"}, names)
        folders = {folder for file in set.union(*parts) for folder in file.parts}
        self.assertEmpty(folders & {"site-packages", "test", "tests", "encodings", "__pycache__"})

    def test_shares_and_size(self):
        corpus = Corpus.standard_library()
        sizes = [
            sum(file.stat().st_size for file in text.files) for text in (corpus.train, corpus.validation, corpus.test)
        ]
        self.assertGreater(sum(sizes), 5_000_000)
        self.assertBetween(sizes[0] / sum(sizes), 0.85, 0.95)
        self.assertGreater(min(sizes) / sum(sizes), 0.03)

    def test_a_python_without_sources(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(corpus_module.sysconfig, "get_paths", lambda: {"stdlib": self.get_temp_dir()})
            with self.assertRaisesRegex(FileNotFoundError, "it has 0 .py files"):
                Corpus.standard_library()


@pytest.mark.skipif(not (DATA / "wikitext2").is_dir(), reason="needs WikiText-2; set TF_MOE_TEST_DATA")
class WikiTextTest(TestCase):
    def test_token_counts_are_the_published_ones(self):
        corpus = Corpus.from_directory(DATA / "wikitext2")
        published = {"train": 2_088_628, "validation": 217_646, "test": 245_569}
        vocabularies = {part: build_vocabulary(getattr(corpus, part), None) for part in published}
        self.assertEqual({part: found.num_tokens for part, found in vocabularies.items()}, published)
        # Of the published vocabulary of 33,278, all but <unk> and <eos> are ordinary tokens here.
        self.assertLen(vocabularies["train"], 33_276 + 3)


@pytest.mark.skipif(not (DATA / "lm1b").is_dir(), reason="needs shards of lm1b; set TF_MOE_TEST_DATA")
class OneBillionWordsTest(TestCase):
    def test_few_shards_are_split_by_line(self):
        train, validation, test = all_lines(Corpus.from_directory(DATA / "lm1b"))
        total = len(train) + len(validation) + len(test)
        self.assertBetween(len(train) / total, 0.88, 0.92)
        self.assertEmpty(set(train) & set(validation) | set(train) & set(test) | set(validation) & set(test))
