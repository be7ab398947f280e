import keras
import numpy as np
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.analysis import Label, measure_specialisation
from tf_moe.analysis.observer import Batch, Decisions
from tf_moe.analysis.specialisation import SpecialisationTally
from tf_moe.layers import SparseMoE


def model_of_words(words, experts, k=1):
    """Ids are their own one-hot features, and the gate is a table from words to logits."""
    layer = SparseMoE(experts, 3, k=k, name="moe")
    inputs = keras.Input((None,), dtype="int32")
    embedding = keras.layers.Embedding(words, words, embeddings_initializer="identity", mask_zero=True)
    return keras.Model(inputs, layer(embedding(inputs))), layer


class SpecialisationTest(TestCase):
    def test_in_a_model(self):
        """Word n goes to expert n % 4: all is known of n % 4, half of n % 2, nothing of what is drawn by chance."""
        model, layer = model_of_words(12, 4)
        kernel = np.zeros((12, 4), "float32")
        kernel[np.arange(12), np.arange(12) % 4] = 9
        layer.gate.kernel.assign(kernel)
        batches = [self.rng.integers(0, 12, shape) for shape in ((40, 9), (31, 5), (200, 3))]
        labels = {
            "four": Label(lambda ids: ids % 4, ("a", "b", "c", "d")),
            "two": lambda ids: ids % 2 == 1,
            "chance": lambda ids: self.rng.integers(0, 30, ids.shape),
            "row": lambda ids: np.arange(len(ids)) % 3,
            "some": lambda ids: np.where(ids < 8, ids % 4, -1),
        }
        found = measure_specialisation(model, [(batch, None) for batch in batches], "moe", labels)
        self.assertEqual(list(found), list(labels))
        ids = np.concatenate([batch.ravel() for batch in batches])
        ids = ids[ids > 0]  # padding has no expert
        share = np.bincount(ids % 4) / len(ids)
        four, two, chance = found["four"], found["two"], found["chance"]
        self.assertAllClose(four.information, -(share * np.log(share)).sum())
        self.assertAllClose((four.limit, four.label_entropy), (four.information, four.information))
        self.assertAllClose(four.share, 1.0)
        share = np.bincount(ids % 2) / len(ids)
        self.assertAllClose(two.information, -(share * np.log(share)).sum())
        self.assertLess(np.diff(two.interval), 0.1)
        # 87 degrees of freedom and 1000 positions: 0.0435 by chance alone, with a deviation of 0.007.
        self.assertBetween(chance.baseline, 0.035, 0.055)
        self.assertBetween(chance.excess, -0.045, 0.045)
        self.assertBetween(found["row"].excess, -0.02, 0.02)
        self.assertAllEqual(found["some"].counts.positions.sum(), (ids < 8).sum())
        self.assertAllClose(four.share_of_labels(4), np.eye(4))
        self.assertEqual(four.figures()["high"], four.interval[1])
        (top,) = four.top_labels(2)
        number = int((ids % 4 == 2).sum())
        self.assertAllClose(top, {"label": 2, "positions": number, "share": 1.0, "ratio": len(ids) / number})
        again = measure_specialisation(model, batches, "moe", {"two": labels["two"]})["two"]
        self.assertEqual((again.baseline, again.standard_error), (two.baseline, two.standard_error))

    def test_top_labels(self):
        """An expert has 6 of 8 positions with label 5, which are 8 of 16 of all, and 1 of the 2 with label 9."""
        tally = SpecialisationTally("moe", {"label": Label(lambda x: x)})
        label = np.array([5] * 8 + [9] * 2 + [7] * 6)
        expert = np.array([0] * 6 + [1] * 2 + [0, 1] + [0] + [1] * 5)
        counter = tally._counters["label"]
        counter.add(expert[:, None], np.ones((16, 1), bool), label, np.arange(16))
        tops = tally.result(0, None)["label"].top_labels(0)
        self.assertEqual(tops, [{"label": 5, "positions": 6, "share": 0.75, "ratio": 1.5}])
        self.assertTrue(np.isnan(tally.result(0, 1)["label"].standard_error))

    def test_a_layer_that_is_called_several_times(self):
        """Each call goes through the rows again, and may have a time of its own: two rows of 1 and of 2 positions."""
        tally = SpecialisationTally("moe", {"row": Label(lambda rows: rows)})
        expert = np.array([[0], [1], [0], [0], [1], [1]])
        for rows in ([5, 7], [7, 5]):
            tally.add(Decisions(None, expert if rows[0] == 5 else 1 - expert, np.ones((6, 1)), 0, [2, 4]), Batch(rows))
        found = tally.result(0, None)["row"]
        self.assertAllEqual(found.share_of_labels(2), np.eye(2))
        self.assertAllEqual(found.counts.positions[:, :5], [[3, 0, 0, 3, 0], [0, 3, 3, 0, 0]])
        with self.assertRaisesRegex(ValueError, "the 2 and 4 positions"):
            tally.add(Decisions(None, expert, np.ones((6, 1)), 0, [2, 4]), Batch([[1, 2, 3]] * 2))

    @parameterized.named_parameters(
        ("float", lambda ids: ids / 2, "dtype float64"),
        ("shape", lambda ids: ids[:, :2], r"'mine' with dtype int64 and shape \(3, 2\)"),
        ("rows", lambda ids: ids[:2, 0], r"shape \(2,\)"),
        ("scalar", lambda ids: 3, r"shape \(\)"),
        ("huge", lambda ids: ids + 2**31, "below 2"),
    )
    def test_wrong_labels(self, of, message):
        tally = SpecialisationTally("moe", {"mine": Label(of)})
        with self.assertRaisesRegex(ValueError, message):
            decisions = Decisions(None, np.zeros((15, 1), "int32"), np.ones((15, 1)), 0, [15])
            tally.add(decisions, Batch(np.ones((3, 5), "int64")))
