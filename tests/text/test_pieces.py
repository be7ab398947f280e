import sys
import unicodedata
from pathlib import Path
from unittest import mock

import sentencepiece
import tensorflow as tf
import tensorflow_text as tf_text
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.base import TestCase
from tests.text.files import new_folder, text_of
from tf_moe.text import ParallelText, Pieces, build_pieces
from tf_moe.text import pieces as module

ENGLISH = ["one hundred and two", "two hundred", "twenty-one", ""] * 5
JAPANESE = ["二百一", "百二十", "東京は今日も雨です。"] * 5
KOREAN = ["이백일", "백 이십", "오늘 서울에 비가 와요."] * 5
LINES = st.text(st.characters(codec="utf-8", exclude_categories=("Cn",)), max_size=30) | st.text(
    st.sampled_from("ab <>/2fr\u2581\u3000\t\r\u00a0e\u0301\u1100\u1161\U0001f469\u200d\0\ufeff")
)


def strings(tensor):
    return [line.decode("utf-8") for line in tensor.numpy()]


class PiecesTest(TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.directory = new_folder(cls)
        cls.texts = [text_of(cls.directory, lines, str(n)) for n, lines in enumerate((ENGLISH, JAPANESE, KOREAN))]
        cls.pieces = build_pieces(cls.texts, 400, languages=["ja", "ko"])

    def test_ids(self):
        first = ("<pad>", "<unk>", "</s>", "<2ja>", "<2ko>", "<0x00>", "<0x01>")
        self.assertEqual(self.pieces.tokens[:7], first)
        self.assertEqual(self.pieces.languages, ("ja", "ko"))
        self.assertLen(self.pieces, len(self.pieces.tokens))
        self.assertBetween(len(self.pieces), 270, 400)

    def test_learned_words_are_few_pieces(self):
        # Bytes would be 19 and 30.
        lengths = self.pieces.encode(["one hundred and two", "東京は今日も雨です。"]).row_lengths()
        self.assertAllLess(lengths, 15)

    def test_encode_wrong_lines(self):
        for lines, languages, pattern in (
            ("a line", None, r"lines must be strings \[N\]. Received: shape \(\). Pass one line as \[line\]"),
            ([["a", "b"]], None, r"shape \(1, 2\)"),
            (["a", "b"], tf.constant(["ko"] * 3), r"target_language \(3,\), lines \(2,\)"),
        ):
            with self.assertRaisesRegex(ValueError, pattern):
                self.pieces.encode(lines, languages)
        self.assertEqual(self.pieces.encode([]).to_list(), [])

    def test_encode(self):
        lines = ["two hundred", "", "二百"]
        plain = self.pieces.encode(lines)
        self.assertEqual(plain.dtype, tf.int32)
        self.assertAllEqual(plain[:, -1:].to_list(), [[2], [2], [2]])
        self.assertEqual(plain[1].numpy().tolist(), [2])
        self.assertGreater(min(i for ids in plain.to_list() for i in ids[:-1]), 4)
        self.assertEqual(self.pieces.encode(lines, "ko").to_list(), [[4, *ids] for ids in plain.to_list()])
        each = self.pieces.encode(lines, tf.constant(["ko", "ja", "ko"])).to_list()
        self.assertEqual(each, [[first, *ids] for first, ids in zip([4, 3, 4], plain.to_list(), strict=True)])

    def test_signs_of_the_vocabulary_are_text_in_a_text(self):
        line = "</s> <2ja> <s> <pad> <unk> <0x41> a"
        ids = self.pieces.encode([line])
        self.assertAllGreater(ids.flat_values[:-1], 4)
        self.assertEqual(strings(self.pieces.decode(ids)), [line])

    def test_decode(self):
        (ids,) = self.pieces.encode(["two hundred"], "ja").to_list()
        rows = [[*ids, 0, 0], [*ids, *ids[1:3]], [2, *ids[:-1], 0, 0], [*ids[:1], 0, *ids[1:]]]
        expected = ["two hundred", "two hundred", "", "two hundred"]
        self.assertEqual(strings(self.pieces.decode(tf.ragged.constant(rows).to_tensor())), expected)
        self.assertEqual(strings(self.pieces.decode(tf.ragged.constant(rows))), expected)
        self.assertEqual(strings(self.pieces.decode(tf.zeros([0, 3], tf.int64))), [])
        self.assertEqual(strings(self.pieces.decode(tf.zeros([2, 0], tf.int32))), ["", ""])

    @settings(max_examples=80, deadline=None)
    @given(st.lists(LINES, min_size=1, max_size=4))
    def test_any_text_comes_back_normalised(self, lines):
        decoded = strings(self.pieces.decode(self.pieces.encode(lines)))
        # The tables of Unicode are not of the same year in Python and TensorFlow, so both sides go through Python's.
        composed = [unicodedata.normalize("NFC", line.replace("\u2581", " ")) for line in lines]
        expected = [" ".join(line.split()) for line in composed]
        self.assertEqual([unicodedata.normalize("NFC", line) for line in decoded], expected)

    def test_normalisation_by_hand(self):
        for line, expected in {
            " a\u3000b\u00a0\u2581\t c\r": "a b c",
            "e\u0301": "\u00e9",
            "\u1112\u1161\u11ab": "\ud55c",  # a syllable of Korean in three parts
            "\uff76\uff9e \u2460 \ufb01": "\uff76\uff9e \u2460 \ufb01",  # what form KC would change
        }.items():
            self.assertEqual(strings(self.pieces.decode(self.pieces.encode([line]))), [expected])

    def test_the_same_ids_as_of_sentencepiece_itself(self):
        reference = sentencepiece.SentencePieceProcessor(model_proto=self.pieces.model)
        for line in ("two hundred and one", "東京は雨", "서울에 비가", "a \U0001f600"):
            self.assertEqual(self.pieces.encode([line]).to_list(), [[*reference.encode(line), 2]])

    def test_they_outlive_what_clears_kernels(self):
        expected = self.pieces.encode(["two"]).flat_values
        tokenizer = tf_text.SentencepieceTokenizer(self.pieces.model)
        tf.random.set_seed(1)
        self.assertAllEqual(self.pieces.encode(["two"]).flat_values, expected)
        # Why they make a tokeniser in each graph: when this fails, they need not.
        with self.assertRaises(tf.errors.NotFoundError):
            tokenizer.tokenize(["two"])

    def test_traced_once(self):
        pieces = Pieces(self.pieces.model)  # what other tests have called it with may count
        for count in (1, 2, 5):
            self.assertLen(pieces.decode(pieces.encode(["a b"] * count)).numpy(), count)
        for function in (pieces._tokenize, pieces._detokenize):
            self.assertEqual(function.experimental_get_tracing_count(), 1)

    def test_unknown_language(self):
        pattern = "target_language must be one of: ja, ko.*fr"
        with self.assertRaisesRegex(ValueError, pattern):
            self.pieces.encode(["one"], "fr")
        encode = tf.function(lambda language: self.pieces.encode(["one"], language).flat_values)
        with self.assertRaisesRegex(tf.errors.InvalidArgumentError, "must be one of: ja, ko.*fr"):
            encode(tf.constant("fr"))
        self.assertAllEqual(encode(tf.constant("ko"))[:1], [4])

    def test_exported(self):
        module = tf.Module()
        signature = [tf.TensorSpec([None], tf.string), tf.TensorSpec([], tf.string)]
        module.encode = tf.function(lambda lines, to: self.pieces.encode(lines, to).to_tensor(), signature)
        module.decode = tf.function(self.pieces.decode, [tf.TensorSpec([None, None], tf.int32)])
        tf.saved_model.save(module, str(self.directory / "exported"))
        loaded = tf.saved_model.load(str(self.directory / "exported"))
        lines = ["two hundred", "東京 は", "\U0001f469\u200d\U0001f4bb"]
        ids = loaded.encode(tf.constant(lines), tf.constant("ko"))
        self.assertAllEqual(ids, self.pieces.encode(lines, "ko").to_tensor())
        self.assertEqual(strings(loaded.decode(ids)), lines)

    def test_save_and_load(self):
        path = self.directory / "saved.pieces"
        self.pieces.save(path)
        loaded = Pieces.load(path)
        self.assertEqual((loaded.tokens, loaded.languages), (self.pieces.tokens, ("ja", "ko")))
        self.assertEqual(sentencepiece.SentencePieceProcessor(str(path)).get_piece_size(), len(loaded))

        @tf.function
        def load_in_a_function():
            self.inside = Pieces.load(path)
            return self.inside.encode(["two"]).flat_values

        self.assertAllEqual(load_in_a_function(), self.pieces.encode(["two"]).flat_values)
        self.assertLen(self.inside, len(self.pieces))
        for data in (b"", b"text\n", self.pieces.model[:100]):
            path.write_bytes(data)
            with self.assertRaisesRegex(ValueError, "saved.pieces' does not hold pieces"):
                Pieces.load(path)

    def test_models_with_other_ids_are_refused(self):
        arguments = {"model_prefix": str(self.directory / "other"), "vocab_size": 300, "hard_vocab_limit": False}
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(ENGLISH[:3]), minloglevel=2, **arguments)
        with self.assertRaisesRegex(ValueError, "make them with build_pieces.*Received: .'<unk>', '<s>'"):
            Pieces((self.directory / "other.model").read_bytes())


class BuildPiecesTest(TestCase):
    def text(self, lines):
        return text_of(self.get_temp_dir(), lines)

    def test_the_same_texts_give_the_same_pieces(self):
        words = ["".join(self.rng.choice(list("abcdef"), 5)) for _ in range(200)]
        text = self.text([" ".join(self.rng.choice(words, 8)) for _ in range(300)])
        self.assertEqual(build_pieces(text, 330).model, build_pieces([text], 330).model)
        with mock.patch.object(module, "_SAMPLE", 50):
            sample = build_pieces(text, 330).model
            self.assertEqual(build_pieces(text, 330).model, sample)
        self.assertNotEqual(build_pieces(text, 330).model, sample)

    def test_of_one_part_of_aligned_texts(self):
        """Both sides, and no character of what is tested."""
        lines = [f"word {n}" for n in range(300)]
        source = text_of(self.get_temp_dir(), lines, "source")
        tested = {line for line, _ in ParallelText(source, source, "a", "b", "test").pairs()}
        target = text_of(self.get_temp_dir(), ["é" if line in tested else "ü" for line in lines], "target")
        tokens = build_pieces(ParallelText(source, target, "a", "b", "train"), 300).tokens
        self.assertContainsSubset(["w", "ü"], "".join(tokens))
        self.assertNotIn("é", tokens)
        self.assertIn("é", build_pieces(target, 300).tokens)

    def test_a_sample_is_fair(self):
        # Ten of 40 in 400 draws of other lines: each is expected 100 times, with a standard deviation of 8.7.
        counts = [0] * 40
        for start in range(400):
            for line in module._sample(map(str, range(start, start + 40)), 10):
                counts[int(line) - start] += 1
        self.assertEqual(sum(counts), 4000)
        self.assertEqual(module._sample(iter("abc"), 3), ["a", "b", "c"])

    def test_coverage(self):
        text = self.text(["a b" * 300, "é"])
        self.assertIn("é", build_pieces(text, 300).tokens)
        rare = build_pieces(text, 300, coverage=0.99)
        self.assertNotIn("é", rare.tokens)
        self.assertEqual(strings(rare.decode(rare.encode(["é"]))), ["é"])

    def test_longest(self):
        text = self.text(["a" * length for length in range(1, 20)])
        for longest in (3, 16):
            tokens = build_pieces(text, 300, longest=longest).tokens
            self.assertEqual(max(map(len, tokens[259:])), longest)

    def test_what_cannot_be_learned(self):
        with self.assertRaisesRegex(ValueError, "empty, or have too many characters.*size=261, coverage=1.0"):
            build_pieces(self.text(["a b c d e f"]), 261)
        with self.assertRaisesRegex(ValueError, "No pieces can be learned"):
            build_pieces(self.text(["", " "]), 300)
        with self.assertRaisesRegex(ValueError, "not UTF-8"):
            path = Path(self.get_temp_dir()) / "latin"
            path.write_bytes(b"caf\xe9\n")
            build_pieces(module.Text([path]), 300)

    def test_without_sentencepiece(self):
        with mock.patch.dict(sys.modules, sentencepiece=None), self.assertRaisesRegex(ImportError, "pip install"):
            build_pieces(self.text(["a"]), 300)
