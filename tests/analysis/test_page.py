from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from tests.base import TestCase
from tf_moe.analysis import TopInput, write_top_inputs

WORDS = np.array(["", "a", "<b>", "c & d", "e"])


class Cells(HTMLParser):
    """The texts of a page's cells, a list for each row; headings as rows of one."""

    def __init__(self, page):
        super().__init__()
        self.rows, self._open = [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag in ("tr", "h1", "h2", "p"):
            self.rows.append([])
        if tag in ("td", "h1", "h2", "p"):
            self.rows[-1].append("")
            self._open = True

    def handle_endtag(self, tag):
        self._open = self._open and tag not in ("td", "h1", "h2", "p")

    def handle_data(self, data):
        if self._open:
            self.rows[-1][-1] += data


class WriteTopInputsTest(TestCase):
    def write(self, tops, **kwargs):
        file = Path(self.get_temp_dir()) / "page.html"
        write_top_inputs(file, tops, lambda ids: WORDS[ids], **kwargs)
        return Cells(file.read_text(encoding="utf-8")).rows

    def test_words_in_context(self):
        ids = np.array([1, 2, 3, 4, 4, 0, 0])
        rows = self.write([[TopInput(0.75, ids, 2), TopInput(0.5, ids, 0)], [], [TopInput(1.0, ids, 4)], []])
        self.assertEqual(rows[0], ["What each expert is for"])
        self.assertEqual(
            rows[2:],
            [
                ["Expert 0"],
                ["0.750", "a <b>", "c & d e e"],
                ["0.500", "", "a <b> c & d e e"],
                ["Expert 2"],
                ["1.000", "a <b> c & d e", "e "],
                ["No input went to expert 1, 3."],
            ],
        )

    def test_options(self):
        ids = np.array([1, 2, 3, 4, 1])
        rows = self.write([[TopInput(1.0, ids, 2)]], title="<T>", separator="", context=1)
        self.assertEqual(rows[0], ["<T>"])
        self.assertEqual(rows[-1], ["1.000", "<b>", "c & de"])

    def test_errors(self):
        top = [[TopInput(1.0, np.array([1, 2]), 0)]]
        with self.assertRaisesRegex(ValueError, r"for each of 2 ids. Received: \['a'\]"):
            write_top_inputs(Path(self.get_temp_dir()) / "page.html", top, lambda ids: ["a"])
        with self.assertRaisesRegex(TypeError, "title=3"):
            self.write(top, title=3)
