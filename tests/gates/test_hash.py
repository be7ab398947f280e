import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tests.gates.helpers import dense
from tf_moe import gates
from tf_moe.gates import Hash
from tf_moe.gates.hash import assignments
from tf_moe.layers import SparseMoE


class HashTest(TestCase):
    def test_an_id_goes_to_its_experts_whatever_the_token_is(self):
        gate, ids = Hash(7, 3), self.rng.integers(0, 1000, 40)
        mask = self.rng.random(40) < 0.7
        expected = np.zeros((40, 7))
        for t in np.flatnonzero(mask):
            expected[t, assignments(7, 3, 0)[ids[t]]] = 1 / 3
        for training in (False, True):
            x = self.normal(40, 5)
            x[~mask] = np.nan
            routing = gate(x, mask=mask, training=training, gate_id=ids)
            self.assertAllClose(dense(routing, 7), expected)
            self.assertAllClose(routing.importance, expected.sum(0))
            self.assertAllEqual(routing.load, np.count_nonzero(expected, axis=0))
        self.assertEmpty(gate.weights)

    def test_any_integers_are_ids(self):
        gate = Hash(8, 2)
        ids = np.array([0, 5, -1, -7, 10**12])
        expected = gate._table[[0, 5, gate.period - 1, gate.period - 7, 10**12 % gate.period]]
        for each in (ids, tf.constant(ids)):
            self.assertAllEqual(gate(self.normal(5, 3), gate_id=each).expert_index, expected)
        self.assertAllEqual(gate(self.normal(1, 3), gate_id=np.uint8([200])).expert_index, gate._table[200:201])

    def test_without_ids_by_the_content(self):
        gate, x = Hash(8, 2), self.normal(2000, 16)
        routing = gate(x)
        self.assertAllEqual(gate(x[::-1].copy()).expert_index[::-1], routing.expert_index)  # nothing but the content
        self.assertAllEqual(gate(x * 4).expert_index, routing.expert_index)
        self.assertAllInRange(routing.load, 0.7 * 500, 1.3 * 500)

    def test_seeds(self):
        x, ids = self.normal(50, 3), np.arange(50)
        indices = [Hash(8, 2, seed=seed)(x, gate_id=ids).expert_index for seed in (None, 0, 1, 2**40, -1)]
        self.assertAllEqual(indices[0], indices[1])
        for n, index in enumerate(indices[1:]):
            for other in indices[1 : n + 1]:
                self.assertNotAllEqual(index, other)

    def test_the_assignment_is_that_of_the_config(self):
        gate = Hash(8, 2, seed=3)
        again = gates.get(keras.saving.serialize_keras_object(gate), 8, 2)
        self.assertAllEqual(again._table, gate._table)
        layer = SparseMoE(8, 3, k=2, gate="hash", seed=5)
        again = SparseMoE.from_config(layer.get_config())
        self.assertAllEqual(again.gate._table, assignments(8, 2, 5))

    @parameterized.parameters(None, 8.0)
    def test_in_a_layer(self, capacity_factor):
        """The mean of an id's experts; they learn, and there is nothing else that could."""
        layer = SparseMoE(8, 3, k=2, gate="hash", capacity_factor=capacity_factor)
        x, ids = self.normal(2, 5, 4), self.rng.integers(0, 100, (2, 5))
        with tf.GradientTape() as tape:
            y = layer(x, training=True, gate_id=ids)
        hidden, output = (w.numpy() for w in layer.experts.weights)
        outputs = np.einsum("bteh,ehd->bted", np.maximum(np.einsum("btd,edh->bteh", x, hidden), 0), output)
        chosen = assignments(8, 2, 0)[ids]
        self.assertAllClose(y, np.take_along_axis(outputs, chosen[..., None], axis=2).mean(axis=2), atol=1e-5)
        self.assertEmpty(layer.losses)
        self.assertAllGreater([tf.norm(g) for g in tape.gradient(y, layer.trainable_variables)], 0)
        self.assertLen(layer.weights, 2)

    def test_any_number_of_ids(self):
        gate, x, ids = Hash(8, 2), self.normal(9, 3), self.rng.integers(0, 10**6, 9)
        specs = [tf.TensorSpec([None, 3]), tf.TensorSpec([None], tf.int64)]
        call = tf.function(lambda x, ids: gate(x, gate_id=ids), input_signature=specs)
        for tokens in (9, 0):
            ours, expected = call(x[:tokens], ids[:tokens]), gate(x[:tokens], gate_id=ids[:tokens])
            self.assertAllEqual(ours.expert_index, expected.expert_index)
            self.assertAllEqual(ours.load, expected.load)


class AssignmentsTest(TestCase):
    def test_never_change(self):
        """Experts were trained with them."""
        self.assertAllEqual(assignments(8, 2, 0)[:5], [[3, 6], [0, 2], [1, 4], [5, 7], [2, 4]])
        self.assertAllEqual(assignments(5, 3, 7)[-2:], [[2, 1, 4], [0, 3, 2]])

    @parameterized.parameters((8, 2, 1000), (7, 3, 1000), (4, 4, 10), (1, 1, 5), (64, 6, 500), (256, 4, 70))
    def test_every_expert_has_the_same_number_of_ids(self, num_experts, k, most):
        table = assignments(num_experts, k, int(self.rng.integers(100)))
        self.assertAllInRange(table, 0, num_experts - 1)
        for ids in (1, 2, most // 3, most, len(table)):
            counts = np.bincount(table[:ids].ravel(), minlength=num_experts)
            self.assertLessEqual(counts.max() - counts.min(), 1)
        ordered = np.sort(table, axis=1)
        self.assertTrue(np.all(ordered[:, 1:] > ordered[:, :-1]))  # k different experts

    def test_any_two_experts_are_as_likely_together(self):
        table = np.sort(assignments(8, 2, 1), axis=1)
        pairs = np.bincount(table[:, 0] * 8 + table[:, 1], minlength=64).reshape(8, 8)[np.triu_indices(8, 1)]
        self.assertAllClose(pairs, np.full(28, len(table) / 28), rtol=0.1)
