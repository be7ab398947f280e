"""Text files of any bytes: their lines exactly, or an error that says what is wrong and where."""

import gzip
import lzma
import tempfile
from collections import Counter
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np

from tests.base import TestCase
from tests.fuzz.base import examples
from tests.text.files import ids_of, new_folder
from tf_moe.text import Corpus, Text, Vocabulary, build_vocabulary, contiguous_batches, sentence_batches

ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=60)
# What ends lines elsewhere, marks of byte order, spaces that are none in ASCII, an emoji of several characters, a word
# that is long; and those bytes that are part of no text.
PIECES = st.sampled_from(
    ["\n", "\n\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\ufeff", "\u00a0", "\u3000", "\u200b"]
    + ["a", "b ", "<unk>", "</s>", "<pad>", "(", "((", " ", "\t", "\U0001f469\u200d\U0001f4bb", "e\u0301", "w" * 70_000]
).map(str.encode)
TOKENS = st.text(st.sampled_from("ab\u00e9\n\r \0\ufeff\x85\ud800"), max_size=3) | st.text(max_size=8)
BAD_PIECES = st.sampled_from([b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x80"])
data_of_text = st.lists(PIECES | ANY_TEXT.map(str.encode), max_size=12).map(b"".join)
any_data = data_of_text | st.lists(PIECES | BAD_PIECES, max_size=8).map(b"".join) | st.binary(max_size=200)


def lines_of(data):
    """What the lines of these bytes are, or None if they are no text."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    text = text.removeprefix("\ufeff")
    if "\0" in text:
        return None
    return text.removesuffix("\n").split("\n") if data else []


class Files(TestCase):
    def setUp(self):
        super().setUp()
        self.folder = new_folder(self)

    def text(self, data, name="text.txt"):
        path = self.folder / name
        path.write_bytes(data)
        return Text([path])

    def check_lines(self, text, expected, size=1 << 18):
        """The lines are as expected, None being none."""
        try:
            lines = [line for block in text.blocks(size) for line in block]
        except ValueError as error:
            self.assertIsNone(expected)
            self.assertIn(repr(str(text.files[0])), str(error))
        else:
            self.assertEqual(lines, expected)


class ReadingTest(Files):
    @examples(300)
    @hypothesis.given(any_data, st.sampled_from(["plain", ".gz", ".xz"]), st.sampled_from([1, 5, 1 << 18]))
    def test_any_bytes(self, data, kind, size):
        compress = {".gz": gzip.compress, ".xz": lzma.compress}.get(kind, bytes)
        self.check_lines(self.text(compress(data), "text" + kind), lines_of(data), size)

    @examples(300)
    @hypothesis.given(data_of_text, st.sampled_from([".gz", ".xz"]), st.data())
    def test_damaged_compressed_files(self, content, kind, data):
        """Cut, changed, or with something after: what can be read was checked by its checksum, or nothing is read."""
        whole = {".gz": gzip.compress, ".xz": lzma.compress}[kind](content)
        damaged = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
        damaged = bytes(damaged[: data.draw(st.integers(0, len(damaged)))]) + data.draw(st.binary(max_size=9))
        text = self.text(damaged, "text" + kind)
        try:
            lines = list(text.lines())
        except ValueError as error:
            self.assertIn(f"text{kind}'", str(error))
        else:
            self.assertIn(lines, (lines_of(content), []))

    @examples(40)
    @hypothesis.given(st.dictionaries(st.text(min_size=1, max_size=8), any_data, max_size=4))
    def test_any_directory(self, files):
        folder, written = Path(tempfile.mkdtemp(dir=self.folder)), []
        for name, data in files.items():
            try:
                (folder / name).write_bytes(data)
            except (OSError, ValueError):  # no name of a file here, or one outside of the directory
                continue
            written.append(data)
        try:
            corpus = Corpus.from_directory(folder)
            lines = [line for text in (corpus.train, corpus.validation, corpus.test) for line in text.lines()]
        except FileNotFoundError:
            return
        except ValueError as error:
            self.assertIn(str(folder), str(error))
        else:
            expected = Counter(line.strip() for data in written for line in lines_of(data) if line.strip())
            self.assertLessEqual(Counter(line.strip() for line in lines if line.strip()), expected)


class VocabularyTest(Files):
    @examples(60)
    @hypothesis.given(data_of_text.filter(lambda data: lines_of(data)))
    def test_counts_and_ids_are_those_of_str_split(self, data):
        text, lines = self.text(data), lines_of(data)
        vocabulary = build_vocabulary(text, None)
        words = Counter(word for line in lines for word in line.split())
        for special in Vocabulary.specials:
            del words[special]
        self.assertEqual(vocabulary.tokens[3:], tuple(sorted(words, key=lambda word: (-words[word], word))))
        self.assertEqual(vocabulary.encode(lines).to_list(), ids_of(lines, vocabulary))
        self.assertEqual(vocabulary.num_tokens, sum(map(len, ids_of(lines, vocabulary))))
        self.assertEqual(vocabulary.count_tokens(text), vocabulary.num_tokens)

    @examples(100)
    @hypothesis.given(st.lists(TOKENS, max_size=4), st.sampled_from(["words", "code"]))
    def test_what_is_saved_is_what_is_loaded(self, tokens, kind):
        path = self.folder / "vocabulary.txt"
        try:
            vocabulary = Vocabulary([*Vocabulary.specials, *tokens], kind, num_tokens=7)
        except ValueError as error:
            self.assertRegex(str(error), "Received")
            return
        vocabulary.save(path)
        loaded = Vocabulary.load(path)
        self.assertEqual((loaded.tokens, loaded.tokenizer.kind, loaded.num_tokens), (vocabulary.tokens, kind, 7))

    @examples(200)
    @hypothesis.given(st.data())
    def test_damaged_vocabularies(self, data):
        path = self.folder / "vocabulary.txt"
        Vocabulary([*Vocabulary.specials, "a", "\u00e9"], num_tokens=12).save(path)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))] + data.draw(st.binary(max_size=9)))
        try:
            Vocabulary.load(path)
        except ValueError as error:
            self.assertNotEmpty(str(error))


class BatchesTest(Files):
    @examples(5)
    @hypothesis.given(data_of_text.filter(lambda data: lines_of(data)), st.integers(1, 3), st.integers(1, 7))
    def test_every_token_is_a_target_once(self, data, batch_size, steps):
        text, lines = self.text(data), lines_of(data)
        vocabulary = build_vocabulary(text, None)
        ids = ids_of(lines, vocabulary)
        stream = [np.ravel(y)[np.ravel(w) > 0] for _, y, w in contiguous_batches(text, vocabulary, batch_size, steps)]
        self.assertAllEqual(np.concatenate(stream), sum(ids, []))
        rows = sentence_batches(text, vocabulary, batch_size, max_length=steps)
        targets = Counter(int(i) for _, y, w in rows for i in y.numpy()[w.numpy() > 0])
        self.assertEqual(targets, Counter(i for line in ids if len(line) > 1 for i in line))
