import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import references
from tests.base import TestCase
from tests.gates.helpers import coefficients_for, dense, measure, random_weights
from tests.mesh.helpers import Program, strategy_on
from tf_moe import gates
from tf_moe.gates import BiasBalanced, Gate, Hash, Hierarchical, NoisyTopK, StrictlyBalanced
from tf_moe.gates.several import products

G, D, T, E = 3, 4, 13, 6
KINDS = {
    "noisy": lambda **more: NoisyTopK(E, 2, **more),
    "without_noise": lambda **more: NoisyTopK(E, 1, noisy=False, **more),
    "hierarchical": lambda **more: Hierarchical((3, 2), (2, 1), **more),
    "strictly_balanced": lambda **more: StrictlyBalanced(E, 2, **more),
    "bias_balanced": lambda **more: BiasBalanced(E, 2, **more),
}
every_kind = parameterized.named_parameters(KINDS.items())


def as_one(weight, value):
    """The same weight of one gate for tokens of width G * D, where the features of gate g are the g-th of G blocks."""
    if weight.name.startswith("group_"):  # (G a, D, b) -> (a, G D, b)
        value = tf.transpose(tf.reshape(value, [G, 3, D, 2]), [1, 0, 2, 3])
        return tf.reshape(value, [3, G * D, 2])
    return tf.reshape(value, [G * D, -1]) if "kernel" in weight.name else value


class SeveralTest(TestCase):
    def ids(self, low=0, high=G):
        return self.rng.integers(low, high, T)

    def fix_noise(self, *several):
        """The same in every call of all of them."""
        values = self.normal(1000)
        for gate in several:
            gate.noise = lambda shape: tf.reshape(values[: np.prod(shape)], shape)

    @every_kind
    def test_is_one_gate_whose_kernels_depend_on_the_token(self, make):
        """Values, balance and gradients are those of one gate over all tokens, each in the place of its gate."""
        gate = random_weights(make(num_gates=G), D, self.rng)
        one = make()
        one.build((None, G * D))
        one.set_weights([as_one(w, w.value) for w in gate.weights])
        self.fix_noise(gate, one)
        x, mask, ids = self.normal(T, D), self.rng.random(T) < 0.8, self.ids(-1, G + 1)
        known = (ids >= 0) & (ids < G)
        wide = (np.eye(G)[np.clip(ids, 0, G - 1)][:, :, None] * x[:, None]).reshape(T, G * D)
        x[~mask] = np.nan
        coefficients = coefficients_for(self.rng, T, E)
        for training in (True, False):
            ours = {"mask": mask, "training": training, "gate_id": ids}
            ones = {"mask": mask & known, "training": training}
            routing, expected = gate(x, **ours), one(wide, **ones)
            self.assertAllClose(dense(routing, E), dense(expected, E), rtol=1e-4, atol=1e-5)
            for name in ("importance", "load", "loss"):
                a, b = getattr(routing, name), getattr(expected, name)
                self.assertAllClose(a, b, rtol=1e-4, atol=1e-5, msg=name)
        _, slopes = measure(gate, x, E, coefficients, **{**ours, "training": True})
        _, expected = measure(one, wide, E, coefficients, **{**ones, "training": True})
        for weight, slope, want in zip(gate.trainable_variables, slopes, expected, strict=True):
            if want is None:  # that of noise without training, or of thresholds
                self.assertIsNone(slope)
            else:
                self.assertAllClose(as_one(weight, slope), want, rtol=1e-3, atol=1e-4, msg=weight.name)

    def test_every_token_by_the_formula_of_its_own_gate(self):
        gate, x, ids = random_weights(NoisyTopK(E, 2, num_gates=G), D, self.rng), self.normal(T, D), self.ids()
        noise = self.rng.standard_normal((T, E))
        gate.noise = lambda shape: tf.constant(noise, tf.float32)
        routing = gate(x, training=True, gate_id=ids)
        load = np.zeros(E)
        for g in range(G):
            of_g = ids == g
            weights = [w[g].numpy().astype("float64") for w in (gate.kernel, gate.noise_kernel)]
            values, _, part = references.noisy_top_k(x[of_g].astype("float64"), *weights, noise[of_g], 2)
            self.assertAllClose(dense(routing, E).numpy()[of_g], values, rtol=1e-4, atol=1e-5)
            load += part
        self.assertAllClose(routing.load, load, rtol=1e-4, atol=1e-4)

    def test_any_number_of_tokens_under_xla_too(self):
        gate = random_weights(KINDS["hierarchical"](num_gates=G), D, self.rng)
        open_shape = [tf.TensorSpec([None, D]), tf.TensorSpec([None], tf.int64)]
        call = tf.function(lambda x, ids: dense(gate(x, gate_id=ids), E), input_signature=open_shape)
        compiled = tf.function(lambda x, ids: dense(gate(x, gate_id=ids), E), jit_compile=True)
        x, ids = self.normal(T, D), self.ids(0, G + 1)
        expected = dense(gate(x, gate_id=ids), E)
        for tokens in (T, 1, 0):
            self.assertAllClose(call(x[:tokens], ids[:tokens]), expected[:tokens], rtol=1e-4, atol=1e-5)
        self.assertAllClose(compiled(x, ids), expected, rtol=1e-4, atol=1e-5)

    def test_a_mesh_gives_the_same(self):
        strategy = strategy_on(2)
        gate = random_weights(KINDS["hierarchical"](num_gates=G), D, self.rng)
        with strategy.scope():
            many = KINDS["hierarchical"](num_gates=G)
            many.build((None, D))
        many.set_weights(gate.get_weights())
        x, mask, ids = self.normal(8, D), self.rng.random(8) < 0.7, self.rng.integers(0, G + 1, 8)

        def step(gate):
            def compute(x, mask, ids):
                with tf.GradientTape() as tape:
                    routing = gate(x, mask=mask, gate_id=ids)
                    y = tf.reduce_sum(tf.sin(routing.combine_weights))
                gradients = tape.gradient(y, [v.value for v in gate.trainable_variables[:2]])
                return routing.expert_index, routing.combine_weights, routing.load, gradients

            return compute

        ours, expected = Program(strategy, step(many))(x, mask, ids), step(gate)(x, tf.constant(mask), ids)
        real = ours[1] > 0  # other choices may be any
        self.assertAllEqual(ours[0][real], expected[0].numpy()[real])
        for a, b in zip(tf.nest.flatten(ours[1:]), tf.nest.flatten(expected[1:]), strict=True):
            self.assertAllClose(a, b, rtol=1e-4, atol=1e-5)

    # --- weights and config ---

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

    @every_kind
    def test_is_in_the_config(self, make):
        for num_gates in (None, 2, 1):
            gate = make(num_gates=num_gates)
            again = gates.get(keras.saving.serialize_keras_object(gate), gate.num_experts, gate.k)
            self.assertEqual((again.num_gates, again.takes_gate_id), (num_gates, num_gates is not None))
            self.assertEqual(again.get_config(), gate.get_config())
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
