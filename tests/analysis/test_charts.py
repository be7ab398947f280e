import base64
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.analysis.charts import heat_map, interval_chart, load_chart, shades


def parse(svg):
    """The drawing as a tree, which it must be, without its namespace."""
    return ElementTree.fromstring(re.sub(' xmlns="[^"]*"', "", svg))


def picture(svg):
    data = next(image for image in parse(svg).iter("image")).get("href").removeprefix("data:image/png;base64,")
    return tf.io.decode_png(base64.b64decode(data)).numpy()


class ChartsTest(TestCase):
    """What is drawn where; how it looks, a person has to see."""

    def test_shades_differ_in_grey_too(self):
        grey = shades(np.linspace(0, 1, 200)[None])[0] @ [0.299, 0.587, 0.114]
        self.assertAllLess(np.diff(grey), 0.5)  # rounding
        self.assertGreater(grey[0] - grey[-1], 200)
        self.assertAllEqual(shades(np.array([[np.nan, -1, 2]]))[0], [[200] * 3, [255] * 3, [8, 48, 107]])

    def test_load(self):
        svg = parse(load_chart(np.array([1.0, 6, 3]), np.array([2.0, 5, 3]), "<load>"))
        self.assertEqual(svg.find("title").text, "<load>")
        bars = [(float(bar.get("height")), bar.find("title").text) for bar in svg.iter("rect") if len(bar)]
        heights = np.array([height for height, _ in bars])
        self.assertAllClose(heights / heights[0], [1, 0.5, 1 / 6], atol=1e-3)
        self.assertEqual(bars[1][1], "expert 2: 30.00% of the load, 30.00% of the importance")
        dots = [float(dot.get("cy")) for dot in svg.iter("circle")][1:]  # the first is the legend's
        tops = [float(bar.get("y")) for bar in svg.iter("rect") if len(bar)]
        self.assertGreater(dots[0], tops[0])  # 50% under 60%
        self.assertAllClose(dots[1], tops[1], atol=0.01)
        nothing = parse(load_chart(np.zeros(3), np.zeros(3), "none"))
        self.assertEqual({bar.get("height") for bar in nothing.iter("rect") if len(bar)}, {"0.00"})

    def test_intervals(self):
        rows = [("a" * 30, 2.0, 1.5, 2.5), ("b", 1.0, np.nan, np.nan), ("c", -0.1, -0.2, 0.1)]
        svg = parse(interval_chart(rows, "title"))
        widths = [float(bar.get("width")) for bar in svg.iter("rect")]
        self.assertAllClose(np.array(widths) / widths[0], [1, 0.5, 0.05], atol=1e-3)
        self.assertLen([path for path in svg.iter("path") if path.get("stroke-width") == "2"], 2)  # none for NaN
        texts = [text.text for text in svg.iter("text")]
        self.assertEqual(texts, ["a" * 19 + "…", "2.000", "b", "1.000", "c", "-0.100"])

    def test_heat_map(self):
        values = np.array([[0.0, 1], [np.nan, 0.5], [1, 1]])
        svg = heat_map(values, "title", "expert", "word", ("few", "many"), None, ["<x>", "y"], True)
        self.assertAllEqual(picture(svg), shades(values))
        texts = [text.text for text in parse(svg).iter("text")]
        self.assertEqual(texts, ["few", "many", "0", "1", "2", "expert", "<x>", "y", "word"])
        square = heat_map(np.zeros((100, 100)), "title", "expert", "other", ("few", "many"))
        image = parse(square).find("image")
        self.assertEqual(image.get("width"), image.get("height"))
        self.assertIn("90", [text.text for text in parse(square).iter("text")])
        named = heat_map(np.zeros((3, 100)), "title", "step", "other", ("few", "many"), "abc", range(0, 1000, 10))
        texts = [text.text for text in parse(named).iter("text")]
        self.assertEqual(texts[2:5], ["a", "b", "c"])
        self.assertIn("900", texts)  # of the ninetieth column
