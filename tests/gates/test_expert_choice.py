import numpy as np

from tests.base import TestCase
from tests.gates.helpers import dense, random_weights, set_weights
from tf_moe.gates import ExpertChoice
from tf_moe.layers import SparseMoE

# Softmax of the log of these rows gives them back: three tokens, three experts.
SCORES = np.array([[0.5, 0.4, 0.1], [0.1, 0.1, 0.8], [0.3, 0.35, 0.35]])


class ExpertChoiceTest(TestCase):
    def test_by_hand(self):
        # k = 2 of 3 experts and 3 tokens: each expert takes its best 2, and nothing is divided.
        #   expert 0: tokens 0 (.5), 2 (.3);  expert 1: tokens 0 (.4), 2 (.35);  expert 2: tokens 1 (.8), 2 (.35)
        gate = set_weights(ExpertChoice(3, 2), 3, kernel=np.log(SCORES))
        for training in (False, True):
            routing = gate(np.eye(3, dtype="float32"), training=training)
            self.assertAllClose(dense(routing, 3), [[0.5, 0.4, 0], [0, 0, 0.8], [0.3, 0.35, 0.35]])
            self.assertAllClose(routing.importance, [0.8, 0.75, 1.15])
            self.assertAllEqual(routing.load, [2, 2, 2])
        # k = 1: tokens 0, 0 and 1. Nobody takes token 2.
        gate = set_weights(ExpertChoice(3, 1), 3, kernel=np.log(SCORES))
        self.assertAllClose(dense(gate(np.eye(3, dtype="float32")), 3), [[0.5, 0.4, 0], [0, 0, 0.8], [0, 0, 0]])

    def test_every_expert_receives_the_same_number(self):
        x = self.normal(24, 4)
        for experts, k in ((6, 2), (4, 1), (5, 2), (40, 1)):
            for inputs in (x, np.tile(x[:1], (24, 1))):
                gate = random_weights(ExpertChoice(experts, k), 4, self.rng)
                for training in (False, True):
                    load = gate(inputs, training=training).load
                    self.assertAllEqual(load, np.full(experts, max(1, round(24 * k / experts))))

    def test_untrained_every_token_meets_k_experts(self):
        routing = ExpertChoice(6, 2)(self.normal(24, 4))
        self.assertAllEqual(np.count_nonzero(routing.combine_weights, axis=1), np.full(24, 2))

    def test_an_answer_depends_on_the_batch(self):
        """As documented: alone, a token is taken by every expert."""
        gate, x = random_weights(ExpertChoice(4, 1), 3, self.rng), self.normal(16, 3)
        together, alone = dense(gate(x), 4).numpy(), dense(gate(x[:1]), 4).numpy()
        self.assertAllEqual(np.count_nonzero(together, axis=0), np.full(4, 4))
        self.assertAllEqual(np.count_nonzero(alone), 4)
        kept = together[0] > 0
        self.assertAllClose(together[0][kept], alone[0][kept])  # its scores are its own

    def test_a_capacity_of_1_drops_nothing(self):
        for tokens, k in ((16, 1), (10, 2), (3, 1)):
            layer = SparseMoE(4, 3, k=k, gate="expert_choice", capacity_factor=1.0)
            x = self.normal(tokens, 5)
            y = layer(x, training=True)
            self.assertEqual(float(layer.balance_metrics["dropped_fraction"].result()), 0.0)
            self.assertEmpty(layer.losses)
            plain = SparseMoE(4, 3, k=k, gate="expert_choice")
            plain.build(x.shape)
            plain.set_weights(layer.get_weights())
            self.assertAllClose(plain(x), y, atol=1e-5)
