import pathlib
from collections import Counter

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tests.text.files import ids_of, random_lines, write
from tf_moe.text import Text, Vocabulary, build_vocabulary, cache_tokens, packed_batches


def sentences_of(batches):
    """The targets of every sentence, or piece of one, cut out of the rows; and the inputs that belong to them."""
    found = []
    for inputs, targets, weights in batches:
        for x, y, w in zip(inputs.numpy(), targets.numpy(), weights.numpy(), strict=True):
            x, y = x[w > 0].tolist(), y[w > 0].tolist()
            while y:
                end = y.index(2) + 1 if 2 in y else len(y)
                found.append((x[:end], y[:end]))
                x, y = x[end:], y[end:]
    return found


class PackedBatchesTest(TestCase):
    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(self.get_temp_dir(), self._testMethodName)

    def cache(self, files=3, count=100, longest=12, repeat=1):
        """A cache, and what its sentences should be as (inputs, targets), in plain Python."""
        lines = [random_lines(self.rng, count, longest) * repeat for _ in range(files)]
        text = Text([write(self.directory / f"{n}.txt", ls) for n, ls in enumerate(lines)])
        vocabulary = build_vocabulary(text, 20)
        expected = [([2, *ids[:-1]], ids) for ids in ids_of(sum(lines, []), vocabulary) if len(ids) > 1]
        return cache_tokens(text, vocabulary, self.directory / "cache"), expected

    def test_by_hand(self):
        text = Text([write(self.directory / "text", ["a", "b c b", "", "b", "a b", "a b a b a b a"])])
        vocabulary = Vocabulary([*Vocabulary.specials, "a", "b"])
        cache = cache_tokens(text, vocabulary, self.directory / "cache")
        dataset = packed_batches(cache, batch_size=5, steps=6)
        dtypes = (tf.int32, tf.int32, tf.float32)
        self.assertEqual(dataset.element_spec, tuple(tf.TensorSpec([5, 6], dtype) for dtype in dtypes))
        ((inputs, targets, weights),) = dataset
        # "a" and "b c b" fill a row; then "b" and "a b" lie in one with room 1, which is too little for what is left of
        # the long sentence.
        self.assertAllEqual(targets[0], [3, 2, 4, 1, 4, 2])
        self.assertAllEqual(inputs[0], [2, 3, 2, 4, 1, 4])
        self.assertAllEqual(targets[1:], [[4, 2, 3, 4, 2, 0], [3, 4, 3, 4, 3, 4], [3, 2, 0, 0, 0, 0], [0] * 6])
        self.assertAllEqual(inputs[1:], [[2, 4, 2, 3, 4, 0], [2, 3, 4, 3, 4, 3], [4, 3, 0, 0, 0, 0], [0] * 6])
        self.assertAllEqual(weights, tf.cast(targets != 0, tf.float32))

    @parameterized.parameters((16, None), (13, 1), (30, 2))
    def test_every_sentence_once_and_whole(self, steps, most):
        cache, expected = self.cache()
        for options in ({}, {"shuffle_buffer": 50, "seed": 3}):
            batches = [*packed_batches(cache, 4, steps, sentences_per_row=most, **options)]
            self.assertCountEqual(sentences_of(batches), expected)
            ends = np.concatenate([np.sum(targets == 2, axis=1) for _, targets, _ in batches])
            self.assertLessEqual(max(ends), most or steps)
            self.assertGreater(max(ends), 1 if most != 1 else 0)
            for _, _, weights in batches:
                self.assertTrue(np.all(np.diff(weights, axis=1) <= 0))  # padding comes last

    def test_long_sentences_go_on_in_further_rows(self):
        cache, expected = self.cache(longest=40)
        pieces = [(x[n : n + 7], y[n : n + 7]) for x, y in expected for n in range(0, len(y), 7)]
        # A piece in the middle of a sentence has no end, so only one in a row can be told from what follows it.
        found = sentences_of(packed_batches(cache, 4, 7, sentences_per_row=1))
        self.assertCountEqual(found, pieces)
        targets = [y[y > 0] for _, batch, _ in packed_batches(cache, 4, 7) for y in batch.numpy()]
        self.assertEqual(sum(map(len, targets)), cache.num_tokens)

    def test_little_is_padding(self):
        cache, _ = self.cache(files=1, count=1000, repeat=3)
        weights = np.concatenate([w for _, _, w in packed_batches(cache, 4, 24)])
        self.assertGreater(np.mean(weights), 0.97)

    def test_an_epoch_has_as_many_batches_as_it_says(self):
        cache, expected = self.cache()
        batches = packed_batches(cache, 4, 16, shuffle_buffer=1000, drop_remainder=True)
        self.assertEqual(int(batches.cardinality()), cache.num_tokens // 64)
        epochs = []
        for _ in range(2):
            found = [*batches]
            self.assertLen(found, cache.num_tokens // 64)
            epochs.append(Counter(map(str, sentences_of(found))))
            self.assertEqual(epochs[-1] - Counter(map(str, expected)), Counter())  # none twice, none of another text
            self.assertGreater(epochs[-1].total(), len(expected) / 2)
        self.assertNotEqual(*epochs)  # other sentences are left out
        self.assertEqual(int(packed_batches(cache, 4, cache.num_tokens, drop_remainder=True).cardinality()), 0)

    def test_shuffling_repeats_by_seed_and_differs_by_epoch(self):
        cache, _ = self.cache()

        def epochs(seed):
            batches = packed_batches(cache, 4, 16, shuffle_buffer=1000, seed=seed)
            return [np.concatenate([y for _, y, _ in batches]).tolist() for _ in range(2)]

        first = epochs(3)
        self.assertTrue(epochs(3) == first)
        self.assertTrue(first[0] != first[1])
        self.assertTrue(epochs(4) != first)

    def test_processes(self):
        """Together they have every sentence; and for training all have as many batches, though parts differ."""
        cache, expected = self.cache(files=4, count=50)
        parts = [[*packed_batches(cache, 2, 16, process=(n, 3))] for n in range(3)]
        self.assertCountEqual(sum(map(sentences_of, parts), []), expected)
        self.assertNotEqual(len({len(part) for part in parts}), 1)
        count = cache.num_tokens // (2 * 16 * 3)
        for n in range(3):
            batches = packed_batches(cache, 2, 16, process=(n, 3), shuffle_buffer=9, drop_remainder=True)
            self.assertLen([*batches], count)

    def test_a_process_without_a_block_has_as_many_batches(self):
        cache, _ = self.cache(files=1, count=50)
        for n in range(2):
            batches = packed_batches(cache, 2, 16, process=(n, 2), shuffle_buffer=9, drop_remainder=True)
            self.assertLen([*batches], cache.num_tokens // (2 * 16 * 2))
            self.assertGreater(len(batches), 0)

    def test_a_cache_of_nothing_gives_no_batches(self):
        text = Text([write(self.directory / "text", ["", " "])])
        cache = cache_tokens(text, Vocabulary(Vocabulary.specials), self.directory / "cache")
        self.assertEmpty([*packed_batches(cache, 2, 4)])
        self.assertEmpty([*packed_batches(cache, 2, 4, shuffle_buffer=2, drop_remainder=True)])
