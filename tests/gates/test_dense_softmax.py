import numpy as np

from tests.base import TestCase
from tests.gates.helpers import set_weights
from tf_moe import gates
from tf_moe.gates import DenseSoftmax, NoisyTopK
from tf_moe.layers import SparseMoE


class DenseSoftmaxTest(TestCase):
    def test_by_hand(self):
        # Softmax of the log of these rows gives them back.
        rows = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
        gate = set_weights(DenseSoftmax(3), 2, kernel=np.log(rows))
        for training in (False, True):
            routing = gate(np.eye(2, dtype="float32"), training=training)
            self.assertAllEqual(routing.expert_index, [[0, 1, 2]] * 2)
            self.assertAllClose(routing.combine_weights, rows)
            self.assertAllClose(routing.importance, [0.8, 0.5, 0.7])
            self.assertAllEqual(routing.load, [2, 2, 2])

    def test_is_noisy_top_k_of_all_experts_at_evaluation(self):
        kernel, x = self.normal(3, 5), self.normal(7, 3)
        dense, sparse = (set_weights(kind(5, 5), 3, kernel=kernel)(x) for kind in (DenseSoftmax, NoisyTopK))
        order = np.argsort(sparse.expert_index, axis=1)
        self.assertAllClose(dense.combine_weights, np.take_along_axis(sparse.combine_weights.numpy(), order, axis=1))

    def test_k_is_all_experts(self):
        for k in (None, 5):
            self.assertEqual(gates.get("dense_softmax", 5, k).k, 5)
        layer = SparseMoE(5, 3, k=None, gate="dense_softmax")
        self.assertEqual((layer.k, layer.total_k, layer.get_config()["k"]), (5, 5, 5))
        for k in (1, 4, 6):
            with self.assertRaisesRegex(ValueError, f"k must be 5, or None: a dense gate .* Received: k={k}"):
                DenseSoftmax(5, k)
        with self.assertRaisesRegex(ValueError, r"num_experts must be a positive integer.*\(2, 2\)"):
            DenseSoftmax((2, 2))
