from collections import Counter
from pathlib import Path

import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.base import TestCase
from tests.text.files import ids_of, random_lines, text_of
from tf_moe.text import Vocabulary, build_vocabulary

SPECIALS = list(Vocabulary.specials)
KNOWN = Vocabulary([*SPECIALS, "a", "b", "(", "((", "\u00e9"], "code")


class BuildVocabularyTest(TestCase):
    def setUp(self):
        super().setUp()
        self.directory = self.get_temp_dir()

    def test_most_frequent_first_then_alphabetical(self):
        text = text_of(self.directory, ["c b b a", "", "d d d <unk> <unk> <unk> <unk>", "</s> <pad>"])
        vocabulary = build_vocabulary(text, None)
        self.assertEqual(list(vocabulary.tokens), [*SPECIALS, "d", "b", "a", "c"])
        self.assertEqual(vocabulary.num_tokens, 13 + 4)
        self.assertEqual(list(build_vocabulary(text, 5).tokens), [*SPECIALS, "d", "b"])

    def test_counts_over_many_blocks(self):
        lines = random_lines(self.rng, 3000, words=500) * 20  # more than a block of 256 KiB
        vocabulary = build_vocabulary(text_of(self.directory, lines, "text.gz"), None)
        counts = Counter(word for line in lines for word in line.split())
        self.assertEqual(list(vocabulary.tokens[3:]), sorted(counts, key=lambda word: (-counts[word], word)))
        self.assertEqual(vocabulary.num_tokens, counts.total() + len(lines))
        another = random_lines(self.rng, 100)
        length = sum(len(line.split()) + 1 for line in another)
        self.assertEqual(vocabulary.count_tokens(text_of(self.directory, another)), length)

    def test_code(self):
        text = text_of(self.directory, ["f(f(x))", "  x"])
        self.assertEqual(list(build_vocabulary(text, None, tokenizer="code").tokens), [*SPECIALS, "(", "f", "x", "))"])

    def test_impossible_sizes(self):
        text = text_of(self.directory, ["a b a <unk>"])
        with self.assertRaisesRegex(ValueError, "only 2 distinct tokens, with the three specials 5.*size=6"):
            build_vocabulary(text, 6)
        with self.assertRaisesRegex(ValueError, "size=3"):
            build_vocabulary(text, 3)
        self.assertLen(build_vocabulary(text, 5), 5)


class VocabularyTest(TestCase):
    def test_encode(self):
        vocabulary = Vocabulary([*SPECIALS, "b", "a"])
        lines = ["a b c", "", "<unk> <pad> </s> b"]
        expected = [[4, 3, 1, 2], [2], [1, 1, 1, 3, 2]]
        ids = vocabulary.encode(tf.constant(lines))
        self.assertEqual(ids.to_list(), expected)
        self.assertEqual(ids.dtype, tf.int32)
        self.assertEqual(ids_of(lines, vocabulary), expected)  # the reference of other tests

    def test_encode_in_a_graph(self):
        lines = tf.data.Dataset.from_tensors(tf.constant(["a ((", ""]))
        (ids,) = lines.map(KNOWN.encode)
        self.assertEqual(ids.to_list(), [[3, 6, 2], [2]])

    def test_decode(self):
        self.assertEqual(KNOWN.decode([3, 4, 2, 2, 1, 5, 2, 0, 0]), "a b\n\n<unk> (")
        self.assertEqual(KNOWN.decode(tf.constant([2, 3])), "\na")
        self.assertEqual(KNOWN.decode([]), "")

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.lists(st.sampled_from([1, 3, 4, 5, 6, 7]), max_size=6), min_size=1, max_size=5))
    def test_decoded_text_encodes_to_the_same_ids(self, sentences):
        # "code" would cut the "<unk>" of decoded text into three tokens, so only "words" may meet it.
        for kind in ("words", "code"):
            vocabulary = Vocabulary(KNOWN.tokens, kind)
            expected = [[i for i in ids if kind == "words" or i != 1] + [2] for ids in sentences]
            lines = vocabulary.decode(sum(expected, [])).split("\n")
            self.assertEqual(vocabulary.encode(tf.constant(lines)).to_list(), expected)

    def test_save_and_load(self):
        path = Path(self.get_temp_dir()) / "vocabulary.txt"
        # Not line ends to a vocabulary file, though str.splitlines takes them for some.
        vocabulary = Vocabulary([*SPECIALS, "\u00e9", "a\x1bb", "\u200b"], "code", num_tokens=12)
        vocabulary.save(path)
        self.assertEqual(path.read_text(encoding="utf-8").split("\n")[1:4], SPECIALS)
        loaded = Vocabulary.load(str(path))
        self.assertEqual((loaded.tokens, loaded.tokenizer.kind, loaded.num_tokens), (vocabulary.tokens, "code", 12))
        self.assertAllEqual(loaded.encode(["\u00e9 b"]), vocabulary.encode(["\u00e9 b"]))

    def test_what_is_not_a_vocabulary(self):
        path = Path(self.get_temp_dir()) / "tokens.txt"
        for content in ("the\nof\n", '{"size": 3}\n<pad>\n<unk>\n</s>\n', "[1]\nthe\n", ""):
            path.write_text(content)
            with (
                self.subTest(content),
                self.assertRaisesRegex(ValueError, "tokens.txt' is not a saved vocabulary"),
            ):
                Vocabulary.load(path)

    def test_wrong_tokens(self):
        with self.assertRaisesRegex(ValueError, "first tokens must be"):
            Vocabulary(["<unk>", "a"])
        with self.assertRaisesRegex(ValueError, r"more than once: \['a'\]"):
            Vocabulary([*SPECIALS, "a", "b", "a"])

    def test_specials_alone(self):
        self.assertEqual(Vocabulary(SPECIALS).encode(["a"]).to_list(), [[1, 2]])
