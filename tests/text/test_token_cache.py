import json
import pathlib
from unittest import mock

import tensorflow as tf

from tests.base import TestCase
from tests.text.files import ids_of, random_lines, write
from tf_moe.text import Text, TokenCache, Vocabulary, build_vocabulary, cache_tokens, token_cache


def sentences_of(cache, **options):
    """All sentences, as lists of ids, in their order."""
    return [sentence for block in cache.blocks(**options) for sentence in block.to_list()]


class TokenCacheTest(TestCase):
    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(self.get_temp_dir(), self._testMethodName)

    def random_text(self, files=3, count=40):
        """A text of some files, a vocabulary of 20 ids and the sentences' ids in plain Python."""
        lines = [random_lines(self.rng, count) for _ in range(files)]
        names = [f"{n}{suffix}" for n, suffix in zip(range(files), ("", ".gz", ".xz") * files, strict=False)]
        paths = [write(self.directory / "text" / n, ls) for n, ls in zip(names, lines, strict=True)]
        vocabulary = build_vocabulary(Text(paths), 20)
        expected = [ids for ls in lines for ids in ids_of(ls, vocabulary) if len(ids) > 1]
        return Text(paths), vocabulary, expected

    def cache(self, text, vocabulary, **options):
        return cache_tokens(text, vocabulary, self.directory / "cache", **options)

    def test_round_trip(self):
        text, vocabulary, expected = self.random_text()
        told = []
        cache = self.cache(text, vocabulary, progress=lambda *numbers: told.append(numbers))
        self.assertEqual(sentences_of(cache), expected)
        self.assertEqual((cache.num_sentences, cache.num_tokens), (len(expected), sum(map(len, expected))))
        self.assertEqual(told, [(0, 3), (1, 3), (2, 3), (3, 3)])
        self.assertEqual(next(iter(cache.blocks())).dtype, tf.int32)

    def test_any_text(self):
        """Words of any script, words that are specials, blank lines, empty files, none of whose lines is left out."""
        lines = ["die Straße – 東京 😀", "", " \u00a0\t", "a </s> <pad> b", "\u2028"]
        files = [write(self.directory / name, ls) for name, ls in (("a", lines), ("b", []), ("c.gz", ["b a"]))]
        vocabulary = Vocabulary([*Vocabulary.specials, "a", "b", "東京", "😀", "Straße"])
        cache = self.cache(Text(files), vocabulary)
        self.assertEqual(sentences_of(cache), [[1, 7, 1, 5, 6, 2], [3, 1, 1, 4, 2], [4, 3, 2]])
        empty = cache_tokens(Text(files[1:2]), vocabulary, self.directory / "empty")
        self.assertEqual((empty.num_tokens, sentences_of(empty)), (0, []))

    def test_lines_of_a_part(self):
        text, vocabulary, expected = self.random_text()
        parts = [Text(text.files, part) for part in ("train", "validation", "test")]
        caches = [cache_tokens(part, vocabulary, self.directory / part.part) for part in parts]
        self.assertCountEqual(sum((sentences_of(cache) for cache in caches), []), expected)

    def test_is_written_once(self):
        text, vocabulary, _ = self.random_text()
        first = self.cache(text, vocabulary)
        with mock.patch.object(Text, "blocks", side_effect=AssertionError("read again")):
            self.assertEqual(self.cache(text, vocabulary), first)

    def test_goes_on_after_an_interruption(self):
        """In the middle of a shard, and between a shard and the manifest."""
        text, vocabulary, expected = self.random_text()
        read = Text.blocks

        def interrupted(self, *arguments):
            for number, block in enumerate(read(self, size=100)):
                if number == 1 and self.files[0].name == "1.gz":
                    raise KeyboardInterrupt
                yield block

        with mock.patch.object(Text, "blocks", interrupted), self.assertRaises(KeyboardInterrupt):
            self.cache(text, vocabulary)
        found = {file.name for file in (self.directory / "cache").iterdir()}
        self.assertEqual(found, {"manifest.json", "00000-of-00003.tfrecord", "00001-of-00003.unfinished"})
        killed = mock.patch.object(token_cache, "_replace", side_effect=KeyboardInterrupt)
        with killed, self.assertRaises(KeyboardInterrupt):
            self.cache(text, vocabulary)
        told, files = [], []

        def noting(self, *arguments):
            files.extend(self.files)
            return read(self, *arguments)

        with mock.patch.object(Text, "blocks", noting):
            cache = self.cache(text, vocabulary, progress=lambda *numbers: told.append(numbers))
        self.assertEqual(told, [(1, 3), (2, 3), (3, 3)])
        self.assertEqual(files, [*text.files[1:]])
        self.assertEqual(sentences_of(cache), expected)
        self.assertEmpty([*(self.directory / "cache").glob("*.unfinished")])

    def test_shards_that_are_gone_or_cut_off_are_written_again(self):
        text, vocabulary, expected = self.random_text()
        shards = self.cache(text, vocabulary).shards
        shards[0].unlink()
        shards[2].write_bytes(shards[2].read_bytes()[:-1])
        told = []
        cache = self.cache(text, vocabulary, progress=lambda *numbers: told.append(numbers))
        self.assertEqual(told[0], (1, 3))
        self.assertEqual(sentences_of(cache), expected)

    def test_a_damaged_shard_is_told_of(self):
        text, vocabulary, _ = self.random_text()
        cache = self.cache(text, vocabulary)
        data = bytearray(cache.shards[1].read_bytes())
        data[-20] ^= 1
        cache.shards[1].write_bytes(data)
        with self.assertRaisesRegex(tf.errors.DataLossError, "corrupted record"):
            sentences_of(cache)

    def test_stale_caches_are_refused(self):
        text, vocabulary, _ = self.random_text()
        self.cache(text, vocabulary)
        fewer = Vocabulary(vocabulary.tokens[:-1])
        code = Vocabulary(vocabulary.tokens, "code")
        longer = Text([*text.files[:2], write(self.directory / "2.xz", ["w1"] * 1000)])
        for other_text, other_vocabulary, message in (
            (text, fewer, r"made from another vocabulary\. Delete the directory, or pass another\. Received: voc"),
            (text, code, "another vocabulary"),
            (longer, vocabulary, r"another file.*Received: files=\[\["),
            (Text(text.files[::-1]), vocabulary, "another file"),
            (Text(text.files[:2]), vocabulary, "another file"),
            (Text(text.files, "train"), vocabulary, 'another part.*Received: part="train", there: null'),
        ):
            with self.assertRaisesRegex(ValueError, message):
                self.cache(other_text, other_vocabulary)
        self.cache(text, Vocabulary(vocabulary.tokens, num_tokens=5))  # which changes no id
        changed = bytearray(text.files[1].read_bytes())
        changed[-1] ^= 1
        text.files[1].write_bytes(changed)  # of the same name and size
        with self.assertRaisesRegex(ValueError, "another file"):
            self.cache(text, vocabulary)

    def test_other_manifests_are_refused(self):
        text, vocabulary, _ = self.random_text()
        self.cache(text, vocabulary)
        manifest = self.directory / "cache" / "manifest.json"
        whole = json.loads(manifest.read_text())
        name = next(iter(whole["shards"]))
        of_shards = (None, ["a"], {name: 3}, {name: None}, {name: {"bytes": 3}}, {name: {"bytes": "a"}})
        others = [json.dumps(whole | {"shards": shards}) for shards in of_shards]
        for content in ("", "[]", "{}", *others):
            manifest.write_text(content)
            with self.assertRaisesRegex(ValueError, "manifest.json' is damaged.*Delete '/"):
                self.cache(text, vocabulary)

    def test_unreadable_text(self):
        text, vocabulary, _ = self.random_text()
        text.files[0].write_bytes(b"w1\n\xff\n")
        with self.assertRaisesRegex(ValueError, "line 2: not UTF-8"):
            self.cache(text, vocabulary)

    def test_shuffling_repeats_by_seed_and_differs_by_epoch(self):
        text, vocabulary, expected = self.random_text(files=8)
        cache = self.cache(text, vocabulary)

        def epochs(seed):
            blocks = cache.blocks(shuffle=True, seed=seed)
            return [[sum(block.to_list(), []) for block in blocks] for _ in range(2)]

        first = epochs(5)
        self.assertTrue(epochs(5) == first)
        self.assertTrue(first[0] != first[1])
        self.assertTrue(epochs(6) != first)
        self.assertCountEqual(map(tuple, first[0]), map(tuple, first[1]))
        self.assertCountEqual(sentences_of(cache, shuffle=True), expected)

    def test_processes_share_all_sentences(self):
        text, vocabulary, expected = self.random_text(files=5)
        cache = self.cache(text, vocabulary)
        for shuffle in (False, True):
            parts = [sentences_of(cache, shuffle=shuffle, seed=1, process=(n, 3)) for n in range(3)]
            self.assertCountEqual(sum(parts, []), expected)

    def test_one_block_a_file_still_goes_to_all_processes(self):
        cache = self.cache(*self.random_text(files=4)[:2])
        self.assertEqual([sum(1 for _ in cache.blocks(process=(n, 4))) for n in range(4)], [1, 1, 1, 1])

    def test_attributes(self):
        cache = self.cache(*self.random_text()[:2])
        self.assertIsInstance(cache, TokenCache)
        self.assertEqual([file.name for file in cache.shards], [f"0000{n}-of-00003.tfrecord" for n in range(3)])
