import keras
import numpy as np

from tests.base import TestCase
from tf_moe.analysis import top_inputs
from tf_moe.layers import SparseMoE
from tf_moe.models import Translator


class TopInputsTest(TestCase):
    def test_against_a_list_of_all(self):
        model = keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                keras.layers.Embedding(30, 6, mask_zero=True),
                SparseMoE(9, 3, k=2, name="moe"),
            ]
        )
        layer = model.layers[-1]
        layer.gate.kernel.assign(self.normal(6, 9))
        batches = [self.rng.integers(0, 30, shape) for shape in ((3, 4), (2, 7), (1, 1))]
        tops = top_inputs(model, [(batch, None) for batch in batches], "moe", count=3)
        everything = [[] for _ in range(9)]
        for batch in batches:
            embedded = model.layers[0](batch)
            gates = layer.route(embedded, mask=batch != 0).gates.numpy().reshape(*batch.shape, 9)
            for row, position, expert in np.argwhere(gates > 0):
                everything[expert].append((gates[row, position, expert], tuple(batch[row]), position))
        self.assertLen(tops, 9)
        for top, expected in zip(tops, everything, strict=True):
            expected = sorted(expected, key=lambda one: -one[0])[:3]
            self.assertAllClose([one.gate for one in top], [gate for gate, _, _ in expected])
            for one, (gate, _, _) in zip(top, expected, strict=True):
                # One word has one gate value wherever it stands, so the place may be another of the same word.
                same = everything_of(everything, gate)
                self.assertIn((tuple(one.ids), one.position), same)
            self.assertNotIn(0, [one.ids[one.position] for one in top])

    def test_ids_without_time(self):
        model = keras.Sequential([keras.Input((4,)), SparseMoE(2, 3, k=1, name="moe")])
        with self.assertRaisesRegex(ValueError, r"\(batch, time\). Received: ids of shape \(3,\)"):
            top_inputs(model, [self.normal(3, 4)], "moe", ids_of=lambda x: x[:, 0])

    def test_translator(self):
        model = Translator(12, width=4, lstm_units=4, num_experts=3, k=1, expert_hidden=4, gate="noisy_top_k")
        source, target = self.rng.integers(3, 12, (2, 5)), self.rng.integers(3, 12, (2, 3))
        batches = [((source, target), target)]
        for layer, ids, part in (("encoder_moe", source, 0), ("decoder_moe", target, 1)):
            tops = top_inputs(model, batches, layer, ids_of=lambda inputs, part=part: inputs[part])
            found = {(tuple(one.ids), one.position) for top in tops for one in top}
            self.assertEqual(found, {(tuple(row), n) for row in ids for n in range(ids.shape[1])})
        with self.assertRaisesRegex(ValueError, r"calls \['encoder_moe', 'decoder_moe'\]. Received: layer='moe'"):
            top_inputs(model, batches, "moe")
        with self.assertRaisesRegex(ValueError, r"the 10 ids of 'encoder_moe'.*ids of shape \(2, 3\)"):
            top_inputs(model, batches, "encoder_moe", ids_of=lambda inputs: inputs[1])


def everything_of(everything, gate):
    """Places whose gate value is this one, of any expert."""
    return [(ids, position) for places in everything for other, ids, position in places if abs(other - gate) < 1e-6]
