import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.text.files import ids_of, random_lines, text_of
from tf_moe.text import Vocabulary, build_vocabulary, sentence_batches


def rows_of(batches):
    """The (inputs, targets) of every row that is not padding alone, without padding."""
    rows = []
    for inputs, targets, weights in batches:
        for x, y, w in zip(inputs.numpy(), targets.numpy(), weights.numpy(), strict=True):
            length = int(w.sum())
            if length:
                rows.append((x[:length].tolist(), y[:length].tolist()))
    return rows


class SentenceBatchesTest(TestCase):
    def setUp(self):
        super().setUp()
        self.directory = self.get_temp_dir()

    def random_text(self, count):
        """A text, its vocabulary of 20 ids and the rows that it should give, in plain Python."""
        lines = random_lines(self.rng, count, longest=40)
        text = text_of(self.directory, lines)
        vocabulary = build_vocabulary(text, 20)
        sentences = [ids for ids in ids_of(lines, vocabulary) if len(ids) > 1]
        return text, vocabulary, [([2, *ids[:-1]], ids) for ids in sentences]

    def test_by_hand(self):
        text = text_of(self.directory, ["a", "b c b", "", "  ", "b"])
        vocabulary = Vocabulary([*Vocabulary.specials, "a", "b"])
        dataset = sentence_batches(text, vocabulary, 2, boundaries=[3])
        dtypes = (tf.int32, tf.int32, tf.float32)
        self.assertEqual(dataset.element_spec, tuple(tf.TensorSpec([2, None], dtype) for dtype in dtypes))
        batches = list(dataset)
        self.assertLen(batches, 2)
        short, long = batches
        self.assertAllEqual(short[0], [[2, 3], [2, 4]])
        self.assertAllEqual(short[1], [[3, 2], [4, 2]])
        self.assertAllEqual(short[2], [[1, 1], [1, 1]])
        self.assertAllEqual(long[0], [[2, 4, 1, 4], [0, 0, 0, 0]])
        self.assertAllEqual(long[1], [[4, 1, 4, 2], [0, 0, 0, 0]])
        self.assertAllEqual(long[2], [[1, 1, 1, 1], [0, 0, 0, 0]])

    def test_every_sentence_once(self):
        text, vocabulary, expected = self.random_text(100)
        for options in ({"boundaries": [5, 10]}, {"shuffle_buffer": 20, "seed": 1}, {"max_length": 41}):
            with self.subTest(**options):
                self.assertCountEqual(rows_of(sentence_batches(text, vocabulary, 8, **options)), expected)

    def test_weights_and_padding(self):
        text, vocabulary, _ = self.random_text(100)
        for inputs, targets, weights in sentence_batches(text, vocabulary, 8):
            self.assertAllEqual(weights, targets != 0)
            self.assertAllEqual(weights, inputs != 0)
            self.assertTrue(np.all(np.diff(weights, axis=1) <= 0))  # padding comes last
            self.assertGreater(np.min(np.max(weights, axis=0)), 0)  # no wider than the longest sentence

    def test_batches_hold_sentences_of_one_bucket(self):
        text, vocabulary, _ = self.random_text(200)
        seen = set()
        for _, _, weights in sentence_batches(text, vocabulary, 4, boundaries=[5, 10, 20]):
            lengths = np.sum(weights, axis=1)
            buckets = set(np.searchsorted([5, 10, 20], lengths[lengths > 0], side="right").tolist())
            self.assertLen(buckets, 1)
            seen |= buckets
        self.assertEqual(seen, {0, 1, 2, 3})

    def test_long_sentences_go_on_in_further_rows(self):
        text, vocabulary, sentences = self.random_text(100)
        pieces = [
            (inputs[start : start + 7], targets[start : start + 7])
            for inputs, targets in sentences
            for start in range(0, len(targets), 7)
        ]
        self.assertCountEqual(rows_of(sentence_batches(text, vocabulary, 8, max_length=7)), pieces)

    def test_shuffling_repeats_by_seed_and_differs_by_epoch(self):
        text, vocabulary, _ = self.random_text(100)

        def epochs(seed):
            batches = sentence_batches(text, vocabulary, 8, shuffle_buffer=1000, seed=seed)
            return [rows_of(batches) for _ in range(2)]

        first, second = epochs(3)
        self.assertNotEqual(first, second)
        self.assertEqual(epochs(3), [first, second])

    def test_blank_text_gives_no_batches(self):
        text = text_of(self.directory, ["", " "])
        self.assertEmpty(list(sentence_batches(text, Vocabulary(Vocabulary.specials), 4)))

    def test_wrong_arguments(self):
        text, vocabulary, _ = self.random_text(50)
        for wrong in ({"batch_size": 0}, {"max_length": 0}, {"shuffle_buffer": -1}):
            name, value = next(iter(wrong.items()))
            with self.assertRaisesRegex(ValueError, f"{name}={value}"):
                sentence_batches(text, vocabulary, **({"batch_size": 2} | wrong))
        with self.assertRaisesRegex(ValueError, r"boundaries\[0\]=0"):
            sentence_batches(text, vocabulary, 2, boundaries=[0, 4])
        for boundaries in ([], [8, 4], [4, 4]):
            with self.assertRaisesRegex(ValueError, "boundaries must be rising"):
                sentence_batches(text, vocabulary, 2, boundaries=boundaries)
