import base64
import re
import sys
import xml.etree.ElementTree as ElementTree
from unittest import mock

import matplotlib
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.analysis.charts import heat_map, interval_chart, load_chart


def parse(svg):
    """The drawing as a tree, which it must be, without namespaces."""
    return ElementTree.fromstring(re.sub(' xmlns="[^"]*"', "", svg).replace("xlink:href", "href"))


def texts(svg):
    return [text.text for text in parse(svg).iter("text")]


def points(svg, style):
    """Float `(points, 2)` for each path of a style that goes somewhere, y downwards."""
    paths = [path.get("d") for path in parse(svg).iter("path") if style in path.get("style", "")]
    return [np.array(re.findall(r"[-\d.]+", path), "float64").reshape(-1, 2) for path in paths if path]


def cells(svg):
    """Uint8 `(H, W, 4)`, the colours of a heat map's cells."""
    data = next(parse(svg).iter("image")).get("href").removeprefix("data:image/png;base64,")
    return tf.io.decode_png(base64.b64decode(data)).numpy()


class ChartsTest(TestCase):
    """What is drawn where; how it looks, a person has to see."""

    def test_load(self):
        svg = load_chart(np.array([1.0, 6, 3]), np.array([2.0, 5, 3]), "load")
        names = texts(svg)
        self.assertEqual(names[:3], ["1", "2", "0"])  # the busiest first
        self.assertContainsSubset(["load", "importance", "even share, 33%"], names)
        outline = points(svg, "fill: #6baed6")[0][:, 1]
        tops = np.array([outline[np.flatnonzero(np.diff(outline) == 0)[n]] for n in (0, 2, 4)])
        bottom = outline.max()
        self.assertAllClose((bottom - tops) / (bottom - tops[0]), [1, 0.5, 1 / 6], atol=1e-3)
        dots = [float(use.get("y")) for use in parse(svg).iter("use") if "#08306b" in use.get("style")][:3]
        self.assertAllClose((bottom - np.array(dots)) / (bottom - tops[0]), [5 / 6, 0.5, 1 / 3], atol=1e-3)
        nothing = points(load_chart(np.zeros(3), np.zeros(3), "none"), "fill: #6baed6")[0]
        self.assertEqual(np.ptp(nothing[:, 1]), 0)

    def test_intervals(self):
        svg = interval_chart([("a" * 40, 2.0, 1.5, 2.5), ("b", 1.0, np.nan, np.nan), ("c", -0.1, -0.2, 0.1)], "title")
        widths = np.array([np.ptp(bar[:, 0]) for bar in points(svg, "fill: #6baed6")])
        self.assertAllClose(widths / widths[0], [1, 0.5, 0.05], atol=1e-3)
        intervals = [np.ptp(line[:, 0]) for line in points(svg, "stroke: #08306b; stroke-width: 1.5")]
        self.assertAllClose(np.array(intervals) / widths[0], [0.5, 0.15], atol=1e-3)  # none for NaN
        self.assertContainsSubset(["a" * 29 + "…", "2.000", "b", "1.000", "c", "-0.100"], texts(svg))

    def test_heat_map(self):
        ratios = np.array([[0.0, 1], [np.nan, 2], [8, 99]])
        svg = heat_map(ratios, "title", "expert", "word", "times as often", None, ["<x>", "costs $5, not $6"], True)
        place = np.array([[0, 3 / 6], [0, 4 / 6], [1, 1]])
        expected = matplotlib.colormaps["Blues"](place, bytes=True)
        self.assertAllEqual(cells(svg)[..., 3], [[255, 255], [0, 255], [255, 255]])  # the hatching under NaN is seen
        self.assertAllClose(cells(svg)[~np.isnan(ratios)], expected[~np.isnan(ratios)], atol=2)
        names = texts(svg)
        self.assertEqual(names[:7], ["<x>", "costs $5, not $6", "word", "0", "1", "2", "expert"])
        self.assertContainsSubset(["times as often", "1/8 or less", "1", "8 or more"], names)
        many = texts(heat_map(np.ones((3, 100)), "title", "step", "other", "key", "abc", range(0, 1000, 10)))
        self.assertContainsSubset(["a", "b", "c", "0", "900"], many)  # 900 is the ninetieth column's

    def test_shades_differ_in_grey_too(self):
        svg = heat_map(2 ** np.linspace(-3, 3, 100)[None], "title", "expert", "word", "key")
        grey = cells(svg)[0, :, :3] @ [0.299, 0.587, 0.114]
        self.assertAllLess(np.diff(grey), 1)  # rounding
        self.assertGreater(grey[0] - grey[-1], 180)

    def test_several_in_a_page(self):
        """Ids are of one figure each, all that is referred to is there, and a figure is the same every time."""

        def draw(title):
            return heat_map(np.array([[np.nan, 1.0]]), title, ' id="a" href="#b', "url(#c)", "key", ["語"])

        svg, other = draw("<first>"), draw("second")
        found = parse(svg)
        self.assertEqual((found.get("role"), found.find("title").text), ("img", "<first>"))
        self.assertContainsSubset([' id="a" href="#b', "url(#c)", "語"], texts(svg))
        ids = [[one.get("id") for one in parse(each).iter() if one.get("id")] for each in (svg, other)]
        self.assertLen(set(ids[0] + ids[1]), len(ids[0] + ids[1]))
        links = [one.get("href")[1:] for one in found.iter("use")]
        links += [
            link
            for one in found.iter()
            for value in one.attrib.values()
            for link in re.findall(r"url\(#(.+?)\)", value)
        ]
        self.assertGreaterEqual(len(links), 8)
        self.assertContainsSubset(links, ids[0])
        with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30}):
            self.assertEqual(draw("<first>"), svg)

    def test_without_matplotlib(self):
        with (
            mock.patch.dict(sys.modules, {"matplotlib.figure": None}),
            self.assertRaisesRegex(ImportError, r"pip install 'tf_moe\[plots\]'"),
        ):
            load_chart(np.ones(2), np.ones(2), "load")
