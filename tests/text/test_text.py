import gzip

from tests.base import TestCase
from tests.text.files import random_lines, write
from tf_moe.text import Text


class TextTest(TestCase):
    def setUp(self):
        super().setUp()
        self.directory = self.get_temp_dir()

    def path(self, name):
        return f"{self.directory}/{name}"

    def test_reads_every_kind_of_file_in_the_given_order(self):
        files = {name: random_lines(self.rng, 50) for name in ("c.txt", "b.gz", "a.xz", "news.en-00001-of-00100")}
        text = Text([write(self.path(name), lines) for name, lines in files.items()])
        self.assertEqual(list(text.lines()), [line for lines in files.values() for line in lines])

    def test_blocks_hold_the_lines_whatever_their_size(self):
        lines = random_lines(self.rng, 300)
        text = Text([write(self.path("a.gz"), lines), write(self.path("b"), lines)])
        for size in (1, 7, 100, 1 << 20):
            with self.subTest(size=size):
                blocks = list(text.blocks(size))
                self.assertEqual([line for block in blocks for line in block], lines + lines)
                self.assertTrue(all(sum(map(len, block[:-1])) <= size for block in blocks))

    def test_only_a_newline_ends_a_line(self):
        path = self.path("odd.txt")
        with open(path, "wb") as file:
            file.write("\ufeffone\x0cpage\u2028same\x85line\n\n\nlast without an end".encode())
        expected = ["one\x0cpage\u2028same\x85line", "", "", "last without an end"]
        self.assertEqual(list(Text([path]).lines()), expected)

    def test_parts_of_lines_are_disjoint_and_complete(self):
        lines = random_lines(self.rng, 2000, words=1000)
        path = write(self.path("text.txt"), lines)
        parts = {part: list(Text([path], part).lines()) for part in ("train", "validation", "test")}
        self.assertCountEqual(sum(parts.values(), []), [line for line in lines if line])
        self.assertTrue(all(parts.values()))
        for part, others in (("train", "validation"), ("train", "test"), ("validation", "test")):
            self.assertEmpty(set(parts[part]) & set(parts[others]))
        for part in parts:  # each in the order of the text
            own = set(parts[part])
            self.assertEqual(parts[part], [line for line in lines if line in own])

    def test_bad_utf8_is_refused_with_file_and_line(self):
        data = b"fine\n" * 9 + "caf\u00e9 ".encode("latin-1") + b"\nfine\n"
        for name, content in {"bad.txt": data, "bad.gz": gzip.compress(data)}.items():
            with open(self.path(name), "wb") as file:
                file.write(content)
            for size in (1, 1 << 18):
                with self.assertRaisesRegex(ValueError, rf"{name}', line 10: not UTF-8.*xe9"):
                    list(Text([self.path(name)]).blocks(size))

    def test_zero_bytes_are_refused(self):
        with open(self.path("archive.txt"), "wb") as file:
            file.write(b"name\n\0\0\0ustar")
        with self.assertRaisesRegex(ValueError, "archive.txt', line 2: a zero byte"):
            list(Text([self.path("archive.txt")]).lines())

    def test_damaged_files_are_refused(self):
        whole = {name: write(self.path(name), random_lines(self.rng, 500)).read_bytes() for name in ("a.gz", "a.xz")}
        for name, data in whole.items():
            for damaged in (data[: len(data) // 2], b"plain text\n", data[:60] + b"\xff" * 40 + data[100:]):
                with open(self.path(name), "wb") as file:
                    file.write(damaged)
                with self.assertRaisesRegex(ValueError, f"{name}' is damaged|{name}', line"):
                    list(Text([self.path(name)]).lines())

    def test_wrong_arguments(self):
        path = write(self.path("a.txt"), ["a"])
        with self.assertRaisesRegex(ValueError, "at least one file"):
            Text([])
        with self.assertRaisesRegex(ValueError, "list of paths"):
            Text(str(path))
        with self.assertRaisesRegex(FileNotFoundError, "b.txt"):
            Text([path, self.path("b.txt")])
        with self.assertRaisesRegex(ValueError, "part='dev'"):
            Text([path], "dev")
