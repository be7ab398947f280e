import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.gates import Gate, Hash, NoisyTopK
from tf_moe.ops.masks import attach_mask


class GateTest(TestCase):
    def test_says_what_is_to_be_implemented(self):
        class Mine(Gate):
            pass

        with self.assertRaisesRegex(NotImplementedError, "Mine must create its weights"):
            Mine(4, 2).build((None, 3))
        with self.assertRaisesRegex(NotImplementedError, "Mine must implement call"):
            Mine(4, 2).call(tf.zeros([2, 3]))

    def test_dtype_is_float32_under_any_policy(self):
        self.addCleanup(keras.config.set_dtype_policy, keras.config.dtype_policy())
        keras.config.set_dtype_policy("bfloat16")
        gate = NoisyTopK(4, 2)
        gate.build((None, 3))
        self.assertEqual((gate.compute_dtype, gate.variable_dtype), ("float32", "float32"))
        self.assertNotIn("dtype", gate.get_config())

    def test_name_and_trainable_are_kept(self):
        self.assertEqual(NoisyTopK(4, 2).name, "gate")
        config = NoisyTopK(4, 2, name="mine", trainable=False).get_config()
        self.assertEqual((config["name"], config["trainable"]), ("mine", False))

    def test_uniform_noise_is_between_0_and_1(self):
        gate = NoisyTopK(4, 2)
        first, second = gate.uniform_noise([400, 50]).numpy(), gate.uniform_noise(tf.constant([400, 50])).numpy()
        self.assertEqual(first.dtype, np.float32)
        self.assertTrue(np.all((first > 0) & (first < 1)))
        self.assertAllClose([first.mean(), first.std()], [0.5, 12**-0.5], atol=0.02)
        self.assertNotAllClose(first, second)

    def test_a_mask_that_comes_with_the_inputs_is_used(self):
        embedding = keras.layers.Embedding(10, 5, mask_zero=True)
        tokens = embedding(np.array([3, 0, 7]))
        for routing in (NoisyTopK(4, 2)(tokens), NoisyTopK(4, 2, num_gates=2)(tokens, gate_id=[1, 0, 1])):
            self.assertAllEqual(tf.reduce_any(routing.combine_weights > 0, axis=1), [True, False, True])

    def test_what_an_attached_mask_hides_may_be_anything(self):
        x = self.normal(3, 6)
        x[1] = np.nan
        x = tf.constant(x)
        attach_mask(x, tf.constant([True, False, True]))
        routing = NoisyTopK(4, 2, "glorot_uniform")(x, training=True)
        self.assertAllEqual(np.isfinite(routing.load), [True] * 4)
        self.assertAllClose(tf.reduce_sum(routing.importance), 2)

    def test_a_positional_mask_is_one_by_name(self):
        x, mask = self.normal(3, 5), np.array([True, False, True])
        x[1] = np.nan
        for gate, options in ((NoisyTopK(4, 2), {}), (NoisyTopK(4, 2, num_gates=2), {"gate_id": [1, 5, 0]})):
            routing, expected = gate(x, mask, **options), gate(x, mask=mask, **options)
            self.assertTrue(np.isfinite(routing.combine_weights).all())
            self.assertAllEqual(routing.combine_weights, expected.combine_weights)
            self.assertAllEqual(routing.importance, expected.importance)
            with self.assertRaisesRegex(ValueError, r"mask \(2,\), inputs \(3, 5\)"):
                gate(x, mask[:2], **options)

    def test_ids_are_wanted_or_not(self):
        x = self.normal(2, 3)
        for call, pattern in (
            (lambda: NoisyTopK(4, 2, num_gates=3)(x), "num_gates=3 must be told.*gate_id=None"),
            (lambda: NoisyTopK(4, 2)(x, gate_id=[0, 1]), r"NoisyTopK takes no gate_id. Received: gate_id=\[0, 1\]"),
            (lambda: Hash(4, 2)(x, gate_id=[0, 1, 2]), r"gate_id \(3,\), inputs \(2, 3\)"),
            (lambda: Hash(4, 2)(x, gate_id=0.5), "dtype float32"),
        ):
            with self.assertRaisesRegex(ValueError, pattern):
                call()
