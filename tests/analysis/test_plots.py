from pathlib import Path

import matplotlib.image
import numpy as np

from tests.base import TestCase
from tf_moe.analysis import plots


class PlotsTest(TestCase):
    """That a picture is drawn and depends on the data; how it looks, a person has to see."""

    def draw(self, name, plot, *data):
        path = Path(self.get_temp_dir()) / name
        plot(*data, path, "title")
        return matplotlib.image.imread(path)

    def test_perplexity(self):
        first = self.draw(
            "a.png", plots.plot_perplexity, {"moe": ([1, 2, 3], [9.0, 5, 4]), "dense": ([1, 3], [9.0, 6])}
        )
        second = self.draw("b.png", plots.plot_perplexity, {"moe": ([1, 2, 3], [9.0, 5, 4])})
        self.assertGreater(np.abs(first - second).sum(), 100)

    def test_load(self):
        first = self.draw("a.png", plots.plot_load, np.array([5.0, 3, 1]))
        second = self.draw("b.png", plots.plot_load, np.array([3.0, 3, 3]))
        nothing = self.draw("c.png", plots.plot_load, np.zeros(3))
        self.assertAllEqual(first, self.draw("d.png", plots.plot_load, np.array([0.05, 0.03, 0.01])))
        self.assertGreater(np.abs(first - second).sum(), 100)
        self.assertGreater(np.abs(first - nothing).sum(), 100)
