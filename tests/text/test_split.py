from pathlib import PurePath

from tests.base import TestCase
from tf_moe.text.split import check_part, hashed_part, split, split_by_hash, split_by_name


def paths(*names):
    return [PurePath(name) for name in names]


class SplitTest(TestCase):
    def test_parts(self):
        for part in (None, "train", "validation", "test"):
            check_part(part)
        with self.assertRaisesRegex(ValueError, "None or one of .*Received: part='dev'"):
            check_part("dev")

    def test_names_decide_as_whole_words(self):
        for name, part in {
            "train.txt.xz": "train",
            "wiki.valid.tokens": "validation",
            "val.en.gz": "validation",
            "DEV.txt": "validation",
            "test_2016_flickr.en.gz": "test",
            "train/test.txt": "test",  # the last word decides
            "training-monolingual/news.en-00001-of-00100": "train",
        }.items():
            with self.subTest(name):
                # "latest", "interval" and "trains" have none of the words, but letters of them.
                files = paths(name, "latest.txt", "interval.txt", "trains.txt")
                self.assertEqual(split_by_name(files)[part][0], PurePath(name))
        self.assertIsNone(split_by_name(paths("latest.txt", "interval.txt", "trains.txt")))

    def test_one_billion_words(self):
        files = paths(*(f"news.en-{n:05}-of-00100" for n in (3, 2, 1)))
        heldout = paths(*(f"news.en.heldout-{n:05}-of-00050" for n in (2, 0, 1)))
        parts = split_by_name(files + heldout)
        self.assertEqual(parts["train"], sorted(files))
        self.assertEqual(parts["test"], paths("news.en.heldout-00000-of-00050"))
        self.assertEqual(parts["validation"], sorted(heldout)[1:])

    def test_held_out_files_alone_are_split_as_any_others(self):
        heldout = paths("news.en.heldout-00010", "news.en.heldout-00011")
        self.assertEqual(split(heldout)["train"], (heldout, "train"))

    def test_files_without_a_word_train_only_where_none_is_named_for_it(self):
        self.assertEqual(
            split_by_name(paths("train.txt", "valid.txt", "test.txt", "README"))["train"], paths("train.txt")
        )
        self.assertEqual(split_by_name(paths("a.txt", "valid.txt", "test.txt"))["train"], paths("a.txt"))

    def test_a_missing_name_leaves_its_part_without_files(self):
        self.assertEqual(split_by_name(paths("train.txt", "test.txt"))["validation"], [])

    def test_hash_is_the_same_for_ever(self):
        # Another hash would move files between training and test text from one release to the next.
        known = {"json/decoder.py": "test", "enum.py": "test", "os.py": "validation", "io.py": "train"}
        self.assertEqual({key: hashed_part(key) for key in known}, known)

    def test_hash_shares(self):
        drawn = [hashed_part(str(n)) for n in range(20_000)]
        # Five standard deviations of a count of 20,000 draws of 5 % are 154.
        self.assertAllClose(drawn.count("validation"), 1000, atol=154)
        self.assertAllClose(drawn.count("test"), 1000, atol=154)

    def test_hash_split_does_not_depend_on_order_or_on_other_files(self):
        files = paths(*(f"{n}.txt" for n in range(200)))
        parts = split_by_hash(files)
        self.assertEqual(split_by_hash(files[::-1]), parts)
        self.assertCountEqual([file for part in parts.values() for file in part], files)
        fewer = split_by_hash(files[:100])
        for part in parts:
            self.assertEqual(set(fewer[part]), set(parts[part]) & set(files[:100]))

    def test_many_files_are_split_by_file_and_few_by_line(self):
        files = paths(*(f"{n:03}.txt" for n in range(200)))
        self.assertEqual([line_part for _, line_part in split(files).values()], [None, None, None])
        self.assertEqual(split(files[:39])["test"], (files[:39], "test"))
