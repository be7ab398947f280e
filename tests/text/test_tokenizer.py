import re
import string

import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.base import TestCase
from tf_moe.text import Tokenizer

LINES = st.text(st.characters(codec="utf-8", exclude_characters="\0\n"), max_size=40)
CODE = st.text(st.sampled_from(string.printable.replace("\n", "") + "\u00a0\u00e9\u3000"), max_size=40)


def tokens(kind, line):
    return [token.decode("utf-8") for token in Tokenizer(kind).tokenize(tf.constant([line]))[0].numpy()]


class TokenizerTest(TestCase):
    def test_code(self):
        line = '    if x_1 == "":  # \u00e9t\u00e9 ------ 2.5**-n'
        expected = 'if x_1 == "" : # \u00e9t\u00e9 ------ 2 . 5 ** - n'
        self.assertEqual(tokens("code", line), expected.split(" "))

    def test_words(self):
        self.assertEqual(
            tokens("words", " It 's @-@ <unk>\tno\u00a0break "), ["It", "'s", "@-@", "<unk>", "no", "break"]
        )

    @settings(max_examples=60, deadline=None)
    @given(LINES)
    def test_words_are_those_of_str_split(self, line):
        self.assertEqual(tokens("words", line), line.split())

    @settings(max_examples=60, deadline=None)
    @given(CODE)
    def test_code_tokens_are_runs(self, line):
        # A slow reference with the backreference that RE2 does not have.
        found = re.finditer(r"([!-/:-@\[-^`{-~])\1*|[^\s!-/:-@\[-^`{-~]+", line)
        self.assertEqual(tokens("code", line), [match.group() for match in found])

    @settings(max_examples=60, deadline=None)
    @given(LINES | CODE)
    def test_tokens_set_apart_by_spaces_are_the_same_tokens(self, line):
        for kind in Tokenizer.kinds:
            once = tokens(kind, line)
            self.assertEqual(tokens(kind, " ".join(once)), once)

    def test_works_in_a_graph_and_keeps_blank_lines(self):
        for kind in Tokenizer.kinds:
            with self.subTest(kind):
                lines = tf.data.Dataset.from_tensors(tf.constant(["a b", "", "  ", "c"]))
                (ragged,) = lines.map(Tokenizer(kind).tokenize)
                self.assertAllEqual(ragged, tf.ragged.constant([["a", "b"], [], [], ["c"]]))

    def test_unknown_kind(self):
        with self.assertRaisesRegex(ValueError, "kind='chars'"):
            Tokenizer("chars")
