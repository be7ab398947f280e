import numpy as np

from tests.base import TestCase
from tf_moe.analysis.labels import WORD_CLASSES, Label, places, tokens, word_class, word_classes


class LabelsTest(TestCase):
    def test_word_classes(self):
        expected = {
            "": "special",
            "<pad>": "special",
            "7": "number",
            "1,024.5": "number",
            "½": "number",
            "\u2581,": "punctuation",
            "<": "punctuation",
            "--": "punctuation",
            "The": "determiner",
            "that": "determiner",
            "\u2581itself": "pronoun",
            "of": "preposition",
            "because": "conjunction",
            "n't": "auxiliary",
            "\u2019s": "auxiliary",
            "NATO": "capitals",
            "I": "pronoun",
            "Paris": "capitalised",
            "Walking": "capitalised",
            "b2b": "digits and letters",
            "##going": "-ing",
            "sing": "other",
            "walked": "-ed",
            "red": "other",
            "quickly": "-ly",
            "nation": "other",
            "relation": "noun suffix",
            "happiness": "noun suffix",
            "useful": "adjective suffix",
            "economic": "adjective suffix",
            "tables": "-s",
            "glass": "other",
            "bus": "other",
            "house": "other",
            "дом": "other",
        }
        self.assertEqual({word: word_class(word) for word in expected}, expected)
        self.assertLessEqual(set(expected.values()), set(WORD_CLASSES))

    def test_of_ids(self):
        words = ("<pad>", "the", "Walked", "walked")
        inputs = {"ids": np.array([[1, 3], [2, 0]])}
        label = word_classes(words, ids_of=lambda inputs: inputs["ids"])
        names = [[label.name(n) for n in row] for row in label.of(inputs)]
        self.assertEqual(names, [["determiner", "-ed"], ["capitalised", "special"]])
        self.assertEqual(tokens(words).name(1), "the")
        self.assertEqual(tokens().name(17), "17")
        self.assertEqual(Label(len, ("a",)).name(-1), "-1")
        with self.assertRaisesRegex(ValueError, "Received: 4 words, ids 0 to 4"):
            word_classes(words).of(np.array([[0, 4]]))

    def test_places(self):
        for longest in (1, 2, 8, 1024):
            label = places(longest=longest)
            values = label.of(np.zeros((2, 20)))
            self.assertEqual(values.shape, (2, 20))
            for place, value in enumerate(values[1]):
                name = label.name(value)
                low, high = (
                    (int(name.split()[0]), 10**9)
                    if "more" in name
                    else (int(name.split("-")[0]), int(name.split("-")[-1]))
                )
                self.assertBetween(place, low, high)
                self.assertLessEqual(low, longest)
