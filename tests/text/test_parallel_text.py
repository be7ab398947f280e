import itertools
from pathlib import Path

from tests.base import TestCase
from tests.text.files import random_lines, write
from tf_moe.text import ParallelText, Text


class ParallelTextTest(TestCase):
    def text(self, name, lines):
        return Text([write(Path(self.get_temp_dir()) / name, lines)])

    def parallel(self, source, target, **arguments):
        return ParallelText(self.text("train.en.gz", source), self.text("train.fr.xz", target), "en", "fr", **arguments)

    def test_pairs_and_blocks(self):
        source, target = [random_lines(self.rng, 50, longest=2) for _ in range(2)]
        text = self.parallel([f" {line}\r" for line in source], target)
        expected = [(s, t) for s, t in zip(source, target, strict=True) if s and t]
        self.assertEqual(list(text.pairs()), expected)
        self.assertEqual(text.count(), (len(expected), 50 - len(expected)))
        for size in (1, 7, 2048):
            blocks = list(text.blocks(size))
            self.assertEqual([pair for block in blocks for pair in zip(*block, strict=True)], expected)
            self.assertLen(blocks[0][0], min(size, len(expected)))

    def test_misaligned_texts(self):
        for source, target in ((["a"] * 7, ["b"] * 5), (["a"] * 5, ["b"] * 7), ([], ["b"])):
            text = self.parallel(source, target)
            pattern = rf"train.en.gz', '.*train.fr.xz' with {len(source)}, {len(target)} lines"
            for read in (text.count, lambda text=text: list(text.blocks())):
                with self.assertRaisesRegex(ValueError, pattern):
                    read()

    def test_nothing_to_translate(self):
        for source, target in (([], []), (["a", ""], [" ", "b"])):
            with self.assertRaisesRegex(ValueError, f"No pairs of lines in .*train.en.gz.* {len(source)} pairs have a"):
                self.parallel(source, target).count()

    def test_parts_are_the_same_in_all_directions(self):
        texts = [self.text(name, [f"{name}{n % 300}" for n in range(400)]) for name in "abc"]
        found = {}
        for part in ("train", "validation", "test"):
            for s, t in itertools.permutations(range(3), 2):
                text = ParallelText(texts[s], texts[t], "", "", part, texts[0])
                found.setdefault(part, set()).add(tuple(source[1:] for source, _ in text.pairs()))
                self.assertEqual(text.count(), (len(list(text.pairs())), 0))
        self.assertEqual([len(lines) for lines in found.values()], [1, 1, 1])
        train, validation, test = ([*lines][0] for lines in found.values())
        self.assertLen(train + validation + test, 400)
        self.assertEmpty(set(train) & set(validation + test))  # not even lines that come twice
        self.assertTrue(validation and test)

    def test_without_split_by_the_source_decides(self):
        text = self.parallel([f"{n % 20}" for n in range(200)], ["b"] * 200, part="train")
        train = {source for source, _ in text.pairs()}
        self.assertBetween(len(train), 10, 20)
        self.assertEqual(text.count().pairs, 10 * len(train))

    def test_wrong_arguments(self):
        text = self.text("a", ["a"])
        with self.assertRaisesRegex(ValueError, "Aligned texts must be whole files.*part='train'"):
            ParallelText(text, Text(text.files, "train"), "en", "fr")
        with self.assertRaisesRegex(ValueError, "part='dev'"):
            ParallelText(text, text, "en", "fr", "dev")
        with self.assertRaisesRegex(TypeError, "text='a.txt'"):
            ParallelText("a.txt", text, "en", "fr")
