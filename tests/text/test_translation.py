from collections import Counter

import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.text.files import new_folder, random_lines, write
from tf_moe.text import ParallelText, Text, build_pieces, count_too_long, translation_batches


def rows_of(batches):
    """(source, inputs, outputs) of every row that is not padding alone, without padding."""
    rows = []
    for (source, inputs), outputs, weights in batches:
        for s, i, o, w in zip(source.numpy(), inputs.numpy(), outputs.numpy(), weights.numpy(), strict=True):
            if w.any():
                length = int(w.sum())
                rows.append((s[s > 0].tolist(), i[:length].tolist(), o[:length].tolist()))
    return rows


class TranslationBatchesTest(TestCase):
    def setUp(self):
        super().setUp()
        source, target = ([line or "w0" for line in random_lines(self.rng, 100, longest=30)] for _ in range(2))
        self.lines = source, target
        self.french = self.parallel("fr", source, target)
        self.german = self.parallel("de", target[:50], source[:50])
        self.pieces = build_pieces([self.french.source], 400)
        self.for_both = build_pieces([self.french.source], 400, languages=["de", "fr"])

    def parallel(self, language, source, target):
        folder = new_folder(self)
        return ParallelText(
            Text([write(folder / "source", source)]), Text([write(folder / "target", target)]), "en", language
        )

    def expected(self, text, pieces):
        """The rows in plain Python."""
        rows = []
        for source, target in text.pairs():
            (source,), (target,) = pieces.encode([source]).to_list(), pieces.encode([target]).to_list()
            if pieces.languages:
                source = [3 + pieces.languages.index(text.target_language), *source]
            rows.append((source, [2, *target[:-1]], target))
        return rows

    def test_by_hand(self):
        text = self.parallel("fr", ["a", "b a", "a a a", "", "b"], ["b", "b", "a", "b", "a a"])
        pieces = build_pieces([text.source], 300)
        a, b = (int(pieces.encode([letter])[0][0]) for letter in "ab")  # "a" with the space before it
        batches = translation_batches(text, pieces, 9, lengths=[3, 4])
        spec = tf.TensorSpec([None, None], tf.int32)
        self.assertEqual(batches.element_spec, ((spec, spec), spec, tf.TensorSpec([None, None], tf.float32)))
        (long_sources, long_inputs), long_outputs, long_weights = list(batches)[-1]
        ((sources, inputs), outputs, weights), *_ = list(batches)
        self.assertAllEqual(sources, [[a, 2, 0], [b, a, 2], [b, 2, 0]])
        self.assertAllEqual(inputs, [[2, b, 0], [2, b, 0], [2, a, a]])
        self.assertAllEqual(outputs, [[b, 2, 0], [b, 2, 0], [a, a, 2]])
        self.assertAllEqual(weights, [[1, 1, 0], [1, 1, 0], [1, 1, 1]])
        self.assertAllEqual(long_sources, [[a, a, a, 2], [0, 0, 0, 0]])
        self.assertAllEqual(long_inputs, [[2, a, 0, 0], [0, 0, 0, 0]])
        self.assertAllEqual(long_outputs, [[a, 2, 0, 0], [0, 0, 0, 0]])
        self.assertAllEqual(long_weights, [[1, 1, 0, 0], [0, 0, 0, 0]])

    def test_every_pair_once(self):
        expected = self.expected(self.french, self.pieces)
        for options in ({"lengths": [10, 40, 200]}, {"lengths": [200], "shuffle_buffer": 30}):
            with self.subTest(**options):
                self.assertCountEqual(rows_of(translation_batches(self.french, self.pieces, 300, **options)), expected)

    def test_several_directions(self):
        batches = translation_batches([self.french, self.german], self.for_both, 300, lengths=[200])
        expected = [self.expected(text, self.for_both) for text in (self.french, self.german)]
        self.assertCountEqual(rows_of(batches), sum(expected, []))

    def test_blocks_of_several_texts_in_turn(self):
        texts = [self.parallel(language, ["a"] * 3000, ["a"] * 3000) for language in ("fr", "de")]
        pieces = build_pieces([texts[0].source], 300, languages=["de", "fr"])
        rows = rows_of(translation_batches(texts, pieces, 2000, lengths=[4]))
        firsts = [source[0] for source, _, _ in rows]
        self.assertEqual(firsts, [4] * 2048 + [3] * 2048 + [4] * 952 + [3] * 952)

    def test_shapes(self):
        seen = Counter()
        for (source, inputs), outputs, weights in translation_batches(self.french, self.pieces, 100, lengths=[16, 64]):
            self.assertEqual({x.shape for x in (source, inputs, outputs, weights)}, {source.shape})
            seen[tuple(source.shape)] += 1
            self.assertAllEqual(weights, outputs != 0)
            self.assertAllEqual(weights, inputs != 0)
            longest = np.maximum(np.sum(source != 0, axis=1), np.sum(outputs != 0, axis=1))
            self.assertBetween(longest.max(), 16 if source.shape[1] == 64 else 1, source.shape[1])
        self.assertEqual(set(seen), {(6, 16), (1, 64)})

    def test_long_pairs_are_left_out_and_counted(self):
        rows = self.expected(self.french, self.pieces)
        short = [row for row in rows if max(len(row[0]), len(row[2])) <= 20]
        self.assertBetween(len(short), 1, len(rows) - 1)
        self.assertCountEqual(rows_of(translation_batches(self.french, self.pieces, 300, lengths=[20])), short)
        self.assertEqual(count_too_long(self.french, self.pieces, 20), len(rows) - len(short))
        self.assertEqual(count_too_long([self.french] * 2, self.pieces, 200), 0)

    def test_shuffling_repeats_by_seed_and_differs_by_epoch(self):
        def epochs(seed):
            texts = [self.french, self.german]
            batches = translation_batches(texts, self.for_both, 300, lengths=[200], shuffle_buffer=1000, seed=seed)
            return [rows_of(batches) for _ in range(2)]

        first, second = epochs(3)
        self.assertNotEqual(first, second)
        self.assertEqual(epochs(3), [first, second])

    def test_reading_fails_with_the_reason(self):
        text = self.parallel("fr", ["a"] * 3, ["b"] * 2)
        with self.assertRaisesRegex(tf.errors.InvalidArgumentError, "aligned, line by line.*with 3, 2 lines"):
            list(translation_batches(text, self.pieces, 300))

    def test_wrong_arguments(self):
        def batches(texts=None, pieces=None, tokens=100, **arguments):
            return translation_batches(texts or self.french, pieces or self.pieces, tokens, **arguments)

        for wrong in ({"tokens": 0}, {"tokens": 2.5}, {"shuffle_buffer": -1}, {"seed": "a"}):
            ((name, value),) = wrong.items()
            with self.assertRaisesRegex(ValueError, f"{name}={value!r}"):
                batches(**wrong)
        for lengths, pattern in (([], "rising"), ([8, 4], "rising"), ([4, 4], "rising"), ([0, 4], r"lengths\[0\]=0")):
            with self.assertRaisesRegex(ValueError, pattern):
                batches(lengths=lengths)
        with self.assertRaisesRegex(ValueError, "at least one ParallelText"):
            translation_batches([], self.pieces, 100)
        with self.assertRaisesRegex(TypeError, r"texts\[0\] must be a ParallelText"):
            batches([self.french.source])
        with self.assertRaisesRegex(TypeError, "pieces must be a Pieces"):
            batches(pieces=["a"])
        with self.assertRaisesRegex(ValueError, r"tokens for \['de', 'fr'\]. Received: .*'ja'"):
            batches(self.parallel("ja", ["a"], ["a"]), self.for_both)
        with self.assertRaisesRegex(ValueError, "longest=0"):
            count_too_long(self.french, self.pieces, 0)
