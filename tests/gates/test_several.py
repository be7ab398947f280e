"""Several gates: what is the same for all kinds. What each decides is in `test_every_gate.py`."""

import keras
import numpy as np
import tensorflow as tf

from tests import references
from tests.base import TestCase
from tests.gates.helpers import dense, fix_noise, random_weights
from tf_moe import gates
from tf_moe.gates import Gate, Hash, NoisyTopK
from tf_moe.gates.several import products

G, D, T, E = 3, 4, 13, 6


class SeveralTest(TestCase):
    def test_every_token_by_the_formula_of_its_own_gate(self):
        gate, x, ids = (
            random_weights(NoisyTopK(E, 2, num_gates=G), D, self.rng),
            self.normal(T, D),
            self.rng.integers(0, G, T),
        )
        noise = self.rng.standard_normal((T, E))
        fix_noise(gate, noise)
        routing = gate(x, training=True, gate_id=ids)
        load = np.zeros(E)
        for g in range(G):
            of_g = ids == g
            weights = [w[g].numpy().astype("float64") for w in (gate.kernel, gate.noise_kernel)]
            values, _, part = references.noisy_top_k(x[of_g].astype("float64"), *weights, noise[of_g], 2)
            self.assertAllClose(dense(routing, E).numpy()[of_g], values, rtol=1e-4, atol=1e-5)
            load += part
        self.assertAllClose(routing.load, load, rtol=1e-4, atol=1e-4)

    def test_each_gate_starts_for_itself(self):
        initializer = keras.initializers.GlorotUniform(seed=1)
        gate = NoisyTopK(64, 2, initializer, num_gates=3)
        gate.build((None, 64))
        self.assertEqual(gate.kernel.shape, (3, 64, 64))
        alone = initializer((64, 64))
        self.assertAllClose(gate.kernel[0], alone)
        for g in (1, 2):
            self.assertNotAllClose(gate.kernel[g], alone)
            self.assertAllClose(np.std(gate.kernel[g]), np.std(alone), rtol=0.05)

    def test_one_of_several_takes_ids_too(self):
        for num_gates in (None, 1, 2):
            gate = NoisyTopK(4, 2, num_gates=num_gates)
            again = gates.get(keras.saving.serialize_keras_object(gate), 4, 2)
            self.assertEqual((again.num_gates, again.takes_gate_id), (num_gates, num_gates is not None))
        self.assertEqual(gates.get("bias_balanced", 4, 2, num_gates=3).num_gates, 3)

    def test_a_gate_that_cannot_be_several(self):
        class Mine(Gate):
            pass

        for kind in (Mine, Hash):
            with self.assertRaisesRegex(ValueError, f"{kind.__name__} cannot be several gates. .*num_gates=2"):
                kind(4, 2, num_gates=2)
        with self.assertRaisesRegex(ValueError, "num_gates must be a positive integer. Received: num_gates=0"):
            NoisyTopK(4, 2, num_gates=0)


class ProductsTest(TestCase):
    def test_by_hand(self):
        # Gates that multiply with 1 and with 10; the last token has none.
        x, ids = tf.constant([[1.0], [2.0], [3.0], [4.0]]), tf.constant([1, 0, 1, 2])
        kernels = [tf.constant([[[1.0]], [[10.0]]]), tf.constant([[[-1.0]], [[-10.0]]])]
        first, second = products(x, kernels, ids)
        self.assertAllEqual(first, [[10], [2], [30], [0]])
        self.assertAllEqual(second, [[-10], [-2], [-30], [0]])
        self.assertAllEqual(products(x, [tf.constant([[2.0]])])[0], 2 * x)
