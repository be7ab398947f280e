import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.text.files import ids_of, random_lines, text_of
from tf_moe.text import Text, Vocabulary, build_vocabulary, contiguous_batches


def spec(rows, steps):
    return tuple(tf.TensorSpec([rows, steps], dtype) for dtype in (tf.int32, tf.int32, tf.float32))


class ContiguousBatchesTest(TestCase):
    def setUp(self):
        super().setUp()
        self.directory = self.get_temp_dir()

    def random_text(self, count):
        """A text, its vocabulary of 20 ids (so that some words are unknown) and its ids in plain Python."""
        lines = random_lines(self.rng, count)
        text = text_of(self.directory, lines)
        vocabulary = build_vocabulary(text, 20)
        return text, vocabulary, sum(ids_of(lines, vocabulary), [])

    def test_by_hand(self):
        text = text_of(self.directory, ["a b", "", "b c a"])
        vocabulary = Vocabulary([*Vocabulary.specials, "a", "b"])
        dataset = contiguous_batches(text, vocabulary, batch_size=2, steps=3)
        self.assertEqual(dataset.element_spec, spec(2, 3))
        first, second = dataset
        self.assertAllEqual(first[0], [[2, 3, 4], [2, 2, 4]])
        self.assertAllEqual(first[1], [[3, 4, 2], [2, 4, 1]])
        self.assertAllEqual(first[2], [[1, 1, 1], [1, 1, 1]])
        self.assertAllEqual(second[0], [[1, 3, 0], [0, 0, 0]])
        self.assertAllEqual(second[1], [[3, 2, 0], [0, 0, 0]])
        self.assertAllEqual(second[2], [[1, 1, 0], [0, 0, 0]])

    def test_every_token_is_a_target_once_and_the_next_input(self):
        text, vocabulary, ids = self.random_text(60)
        for batch_size, steps in ((1, 1), (3, 7), (4, len(ids)), (2, len(ids) + 1)):
            with self.subTest(batch_size=batch_size, steps=steps):
                dataset = contiguous_batches(text, vocabulary, batch_size, steps)
                batches = list(dataset)
                inputs, targets, weights = (
                    np.concatenate([np.ravel(batch[part]) for batch in batches]) for part in range(3)
                )
                self.assertAllEqual(weights, targets != 0)
                self.assertAllEqual(targets[weights == 1], ids)
                self.assertAllEqual(inputs[weights == 1], [2, *ids[:-1]])
                self.assertAllEqual(inputs[weights == 0], targets[weights == 0])
                self.assertLen(batches, -(-vocabulary.num_tokens // (batch_size * steps)))

    def test_windows_go_on_over_blocks_and_files(self):
        lines = random_lines(self.rng, 2000) * 10  # more than a block of 256 KiB
        texts = [text_of(self.directory, lines, name) for name in ("a.xz", "b.gz")]
        text = Text(texts[0].files + texts[1].files)
        self.assertGreater(sum(1 for _ in text.blocks()), 2)
        vocabulary = build_vocabulary(text, None)
        ids = sum(ids_of(lines[:2000], vocabulary), []) * 20
        targets = np.concatenate([np.ravel(batch[1]) for batch in contiguous_batches(text, vocabulary, 64, 50)])
        self.assertAllEqual(targets[: len(ids)], ids)
        self.assertEmpty(np.flatnonzero(targets[len(ids) :]))

    def test_drop_remainder_leaves_full_batches(self):
        text, vocabulary, ids = self.random_text(100)
        dataset = contiguous_batches(text, vocabulary, 3, 7, drop_remainder=True)
        self.assertEqual(dataset.element_spec, spec(3, 7))
        batches = list(dataset)
        self.assertLen(batches, vocabulary.num_tokens // 21)
        self.assertAllEqual(np.ravel([batch[1] for batch in batches]), ids[: 21 * len(batches)])
        self.assertAllEqual(np.ravel([batch[2] for batch in batches]), np.ones(21 * len(batches)))

    def test_shuffling_draws_every_window_and_each_epoch_anew(self):
        text, vocabulary, _ = self.random_text(100)
        steps = 5

        def epochs(seed):
            batches = contiguous_batches(text, vocabulary, 4, steps, shuffle_buffer=1000, seed=seed)
            epochs = [np.concatenate([batch[:2] for batch in batches], axis=1) for _ in range(2)]
            return [pairs.transpose(1, 0, 2).reshape(-1, 2 * steps).tolist() for pairs in epochs]

        first, second = epochs(seed=7)
        plain = np.concatenate(
            [batch[:2] for batch in contiguous_batches(text, vocabulary, 4, steps)], axis=1
        ).transpose(1, 0, 2)
        self.assertCountEqual(first, plain.reshape(-1, 2 * steps).tolist())
        self.assertCountEqual(second, first)
        self.assertNotEqual(first, plain.reshape(-1, 2 * steps).tolist())
        self.assertNotEqual(first, second)
        self.assertEqual(epochs(seed=7), [first, second])
        self.assertNotEqual(epochs(seed=8)[0], first)

    def test_keras_reports_the_exact_mean_over_tokens(self):
        text, vocabulary, ids = self.random_text(50)
        table = self.normal(20, 20)  # the logits of a bigram model
        model = keras.Sequential([keras.layers.Embedding(20, 20, embeddings_initializer=lambda *a, **k: table)])
        entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
        metric = keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="entropy")
        model.compile(loss=entropy, weighted_metrics=[metric])
        batches = contiguous_batches(text, vocabulary, 4, 7, num_tokens=vocabulary.num_tokens)
        result = model.evaluate(batches, verbose=0, return_dict=True)
        logits = table[[2, *ids[:-1]]].astype("float64")
        expected = np.mean(np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(ids)), ids])
        self.assertAllClose(result["entropy"], expected, rtol=1e-5)

    def test_number_of_batches(self):
        text, vocabulary, _ = self.random_text(100)
        for drop_remainder in (False, True):
            for steps in (7, vocabulary.num_tokens):
                with self.subTest(drop_remainder=drop_remainder, steps=steps):
                    options = {"drop_remainder": drop_remainder, "num_tokens": vocabulary.num_tokens}
                    batches = contiguous_batches(text, vocabulary, 3, steps, **options)
                    self.assertLen(list(batches), int(batches.cardinality()))
        wrong = contiguous_batches(text, vocabulary, 3, 7, num_tokens=vocabulary.num_tokens + 21)
        with self.assertRaises(tf.errors.FailedPreconditionError):
            list(wrong)

    def test_bad_text_stops_the_iteration_with_its_message(self):
        path = f"{self.directory}/bad.txt"
        with open(path, "wb") as file:
            file.write(b"fine\n\xff\n")
        batches = contiguous_batches(Text([path]), Vocabulary(Vocabulary.specials), 1, 1)
        with self.assertRaisesRegex(tf.errors.InvalidArgumentError, "bad.txt', line 2: not UTF-8"):
            list(batches)

    def test_wrong_arguments(self):
        text, vocabulary, _ = self.random_text(50)
        for wrong in ({"batch_size": 0}, {"steps": 0}, {"shuffle_buffer": -1}):
            name, value = next(iter(wrong.items()))
            with self.assertRaisesRegex(ValueError, f"{name}={value}"):
                contiguous_batches(text, vocabulary, **({"batch_size": 2, "steps": 2} | wrong))
