import numpy as np
import tensorflow as tf

from tests import references
from tests.base import TestCase
from tests.gates.helpers import fix_noise, random_weights, set_weights, skewed
from tf_moe.gates import Switch
from tf_moe.layers import SparseMoE


class SwitchTest(TestCase):
    def test_by_hand(self):
        # Unit vectors: row t of the kernel is token t's logits. Three experts, no jitter, alpha 0.5.
        #   probabilities   expert   weight
        #   .6 .3 .1        0        .6
        #   .5 .1 .4        0        .5
        #   .2 .2 .6        2        .6
        # f is 2/3 0 1/3, P is 1.3/3 .6/3 1.1/3: 0.5 * 3 * (2.6 + 1.1) / 9.
        kernel = np.log([[0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.2, 0.2, 0.6]])
        gate = set_weights(Switch(3, aux_loss_weight=0.5, jitter=0.0), 3, kernel=kernel)
        for training in (False, True):
            routing = gate(np.eye(3, dtype="float32"), training=training)
            self.assertAllEqual(routing.expert_index, [[0], [0], [2]])
            self.assertAllClose(routing.combine_weights, [[0.6], [0.5], [0.6]])
            self.assertAllClose(routing.importance, [1.1, 0, 0.6])
            self.assertAllEqual(routing.load, [2, 0, 1])
            self.assertAllClose(routing.loss, 0.5 * 3 * 3.7 / 9 if training else 0.0)

    def test_loss_and_its_gradient(self):
        x = self.rng.standard_normal((20, 3))
        gate = random_weights(Switch(5, aux_loss_weight=1.0, jitter=0.0), 3, self.rng)
        with tf.GradientTape() as tape:
            loss = gate(x.astype("float32"), training=True).loss
        share = gate(x.astype("float32")).load.numpy() / 20
        self.assertAllClose(loss, references.switch(x @ gate.kernel.numpy())[1], rtol=1e-4)

        def reference(kernel):  # f is a count, without gradient
            return 5 * np.array([references.softmax(h) for h in x @ kernel]).mean(axis=0) @ share

        expected = references.gradients(reference, [gate.kernel.numpy()])[0]
        self.assertAllClose(tape.gradient(loss, gate.kernel), expected, rtol=1e-3, atol=1e-5)

    def test_the_loss_balances(self):
        """By it alone a gate comes from uneven loads to even ones."""
        gate, x = skewed(random_weights(Switch(8, aux_loss_weight=1.0), 8, self.rng), self.normal(500, 8))

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                loss = gate(x, training=True).loss
            gate.kernel.assign_sub(0.3 * tape.gradient(loss, gate.kernel))
            return loss

        mean, first = 500 / 8, step()
        self.assertGreater(gate(x).load.numpy().max(), 1.5 * mean)
        for _ in range(300):
            last = step()
        self.assertLess(float(last), float(first))
        self.assertLess(gate(x).load.numpy().max(), 1.4 * mean)

    def test_jitter_multiplies_features_in_training(self):
        # One feature, two experts: the logits are x and 0, and the weight sigmoid(x) for x > 0.
        gate, x = set_weights(Switch(2, jitter=0.1), 1, kernel=[[1, 0]]), np.full((20_000, 1), 2.0, "float32")
        self.assertAllClose(gate(x).combine_weights, np.full(x.shape, 1 / (1 + np.exp(-2))))
        weights = gate(x, training=True).combine_weights.numpy()
        factor = np.log(weights / (1 - weights)) / 2
        self.assertAllInRange(factor, 0.9 - 1e-4, 1.1 + 1e-4)
        self.assertAllClose(np.histogram(factor, 5, (0.9, 1.1))[0] / x.size, np.full(5, 0.2), atol=0.02)  # uniform
        self.assertNotAllEqual(weights, gate(x, training=True).combine_weights)
        fix_noise(gate, np.zeros(x.shape))
        self.assertAllClose(gate(x, training=True).combine_weights, gate(x).combine_weights)

    def test_without_jitter_nothing_is_drawn(self):
        gate, x = random_weights(Switch(4, jitter=0.0), 3, self.rng), self.normal(9, 3)
        state = gate.seed_generator.state.numpy()
        self.assertAllEqual(gate(x, training=True).combine_weights, gate(x).combine_weights)
        self.assertAllEqual(gate.seed_generator.state, state)

    def test_untrained_gate_spreads_tokens(self):
        for training in (False, True):
            load = Switch(8)(self.normal(4096, 32), training=training).load.numpy()
            self.assertAllInRange(load, 0.5 * 512, 1.5 * 512)

    def test_the_papers_loss_alone_in_the_layer(self):
        """The layer's own losses come on top where it is given weights for them."""
        x = self.normal(30, 4)
        alone = SparseMoE(4, 3, k=1, gate="switch")
        alone(x, training=True)
        self.assertAllClose(alone.losses, [0.01])  # untrained, every P_i is 1 / E
        both = SparseMoE(4, 3, k=1, gate="switch", importance_weight=0.1)
        both(x, training=True)
        self.assertGreater(float(both.losses[0]), 0.0101)

    def test_defaults_are_the_papers(self):
        gate = Switch(4)
        self.assertEqual((gate.aux_loss_weight, gate.jitter, gate.z_loss_weight), (0.01, 0.01, 0.0))

    def test_arguments(self):
        self.assertEqual(Switch(4).k, 1)
        for arguments, message in (
            ({"k": 2}, "k must be 1, or None.*Received: k=2"),
            ({"jitter": 1.0}, "jitter=1.0"),
            ({"jitter": -0.1}, "jitter=-0.1"),
            ({"aux_loss_weight": -1}, "aux_loss_weight=-1"),
            ({"z_loss_weight": "a"}, "z_loss_weight='a'"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                Switch(4, **arguments)
        with self.assertRaisesRegex(ValueError, "with Switch gating a token has one expert. Received: k=4"):
            SparseMoE(8, 3, gate="switch")  # whose default is 4
