"""What the examples of images and sounds share: parts of the data, the verdict, and what experts are for."""

import numpy as np

from tests.base import TestCase
from tests.examples.program import EXAMPLES, load, table_rows

EXAMPLE = EXAMPLES / "comparing.py"


class ComparingTest(TestCase):
    def test_parts_are_disjoint_and_have_every_class(self):
        comparing = load(EXAMPLE)
        labels = self.rng.permutation(np.repeat(np.arange(3), [3, 10, 57]))
        data = comparing.split(np.arange(70), labels, ["a", "b", "c"])
        again = comparing.split(np.arange(70), labels, ["a", "b", "c"])
        for part, same, sizes in zip(data[1:], again[1:], ([1, 6, 35], [1, 2, 11], [1, 2, 11]), strict=True):
            self.assertAllEqual(part.labels, labels[part.inputs])
            self.assertAllEqual(np.bincount(part.labels), sizes)
            self.assertAllEqual(part.inputs, same.inputs)
        self.assertCountEqual(np.concatenate([part.inputs for part in data[1:]]), range(70))

    def test_verdict(self):
        comparing = load(EXAMPLE)

        def runs(*right):
            answers = [comparing.Answers(np.array(row, bool), None) for row in right]
            return [comparing.Run(None, None, answer) for answer in answers]

        worse, better = [[0] * 50 + [1] * 50, [1] * 50 + [0] * 50], [[0] * 10 + [1] * 90, [1] * 90 + [0] * 10]
        self.assertStartsWith(comparing.verdict(runs(*better), runs(*worse)), "The mixture beats its dense twin: ")
        self.assertStartsWith(comparing.verdict(runs(*worse), runs(*better)), "The mixture loses to its dense twin: ")
        # One seed 2 of 4 ahead, one 1: 3/8 on average, and over seeds 1/8. Over inputs of (1, 1/2, 0, 0) it is
        # sqrt((25 + 1 + 9 + 9) / 64 / 3 / 4), which is larger.
        few = comparing.verdict(runs([1, 1, 0, 0], [1, 0, 0, 0]), runs([0] * 4, [0] * 4))
        self.assertStartsWith(few, "The mixture neither beats its dense twin nor loses to it: ")
        self.assertIn("+37.50 points, standard error 23.94 ", few)

    def assertStartsWith(self, text, start):  # noqa: N802
        self.assertEqual(text[: len(start)], start)

    def test_what_experts_are_for(self):
        # Inputs 0 and 1 are cats, 2 is a dog. Expert 0 has 3 of 4 positions of the cats and 1 of 4 of the dog's, in all
        # 7 of 12; expert 1 the others; expert 2 none.
        load_of = np.array([[3.0, 1, 0], [3, 1, 0], [1, 3, 0]])
        table = load(EXAMPLE).show_experts(load_of, np.array([0, 0, 1]), ["cat", "dog"], "class")
        self.assertEqual(
            table_rows(table, "0", "1", "2"),
            [["0", "58.3%", "cat (x 1.3)"], ["1", "41.7%", "dog (x 1.8)"], ["2", "0.0%", ""]],
        )
