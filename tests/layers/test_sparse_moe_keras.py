"""The layer as Keras expects layers to be: in every kind of model and dtype; its errors."""

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

import tf_moe
from tests.base import TestCase
from tf_moe.layers import SparseMoE

KINDS = {
    "flat": {"num_experts": 6, "expert_hidden": 5, "k": 2},
    "hierarchical": {"num_experts": (3, 2), "expert_hidden": 5, "k": (2, 1)},
    "balanced": {"num_experts": 6, "expert_hidden": 5, "k": 2, "gate": "strictly_balanced"},
    "capacity": {"num_experts": 6, "expert_hidden": 5, "k": 2, "capacity_factor": 1.5, "drop_by": "weight"},
    "biases": {"num_experts": 6, "expert_hidden": 5, "k": 1, "use_bias": True, "activation": "gelu"},
    "shared": {"num_experts": 6, "expert_hidden": 5, "k": 2, "shared_expert_hidden": 3, "expert_dropout": 0.2},
    "recompute": {"num_experts": 6, "expert_hidden": 5, "k": 2, "recompute": True},
    "layers": {"num_experts": 3, "k": 2, "expert": lambda: keras.layers.Dense(4, "tanh")},
    "gate_object": {
        "num_experts": 6,
        "expert_hidden": 5,
        "k": 2,
        # Its config: an object would be one gate for the layers of all tests.
        "gate": keras.saving.serialize_keras_object(tf_moe.gates.NoisyTopK(6, 2, kernel_initializer="glorot_uniform")),
    },
}
ONE_LAYER = keras.layers.Dense(4)
every_kind = parameterized.named_parameters((name, arguments) for name, arguments in KINDS.items())


def recurrent_model(arguments):
    """Embedding with a mask, LSTM, MoE, softmax, for unknown batch and time."""
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(11, 4, mask_zero=True),
            keras.layers.LSTM(4, return_sequences=True),
            SparseMoE(name="moe", **arguments),
            keras.layers.Dense(11),
        ]
    )


class ModelsTest(TestCase):
    def tokens(self, *shape):
        return self.rng.integers(0, 11, shape).astype("int32")

    def assert_trains(self, model, x):
        """A few epochs on one batch bring the loss down, and all weights of the layer move but unused ones."""
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss)
        history = model.fit(x, x, epochs=12, verbose=0).history["loss"]
        self.assertLess(history[-1], history[0])

    @parameterized.parameters("float64", "bfloat16")
    def test_trains_under_any_floatx(self, floatx):
        """The losses of layer and gate are added to that of the model, which has that dtype."""
        self.addCleanup(keras.config.set_floatx, "float32")
        keras.config.set_floatx(floatx)
        gate = tf_moe.gates.NoisyTopK(4, 2, z_loss_weight=0.1)
        model = keras.Sequential([keras.Input((5, 8)), SparseMoE(4, 6, k=2, gate=gate)])
        model.compile("sgd", "mse")
        x = tf.cast(self.normal(3, 5, 8), floatx)
        history = model.fit(x, x, verbose=0).history
        self.assertTrue(np.isfinite(float(history["loss"][0])))

    def test_every_kind_fits_evaluates_predicts(self):
        """All in one model, each with an output of its own: one training, instead of one for each, is traced."""
        inputs = keras.Input((None,), dtype="int32")
        hidden = keras.layers.Embedding(11, 4, mask_zero=True)(inputs)
        hidden = keras.layers.LSTM(4, return_sequences=True)(hidden)
        outputs = {name: keras.layers.Dense(11, name=name)(SparseMoE(**KINDS[name])(hidden)) for name in KINDS}
        model, x = keras.Model(inputs, outputs), self.tokens(6, 5)
        targets = dict.fromkeys(KINDS, x)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), dict.fromkeys(KINDS, loss))
        history = model.fit(x, targets, epochs=12, verbose=0).history
        evaluated = model.evaluate(x, targets, verbose=0, return_dict=True)
        predicted = model.predict(x[:1, :3], verbose=0)  # another batch, another time
        for name in KINDS:
            with self.subTest(name):
                self.assertLess(history[f"{name}_loss"][-1], history[f"{name}_loss"][0])
                self.assertTrue(np.isfinite(evaluated[f"{name}_loss"]))
                self.assertEqual(predicted[name].shape, (1, 3, 11))

    def test_functional_and_subclassed(self):
        inputs = keras.Input((None,), dtype="int32")
        x = keras.layers.Embedding(11, 4)(inputs)
        moe = SparseMoE(6, 5, k=2, name="shared")
        functional = keras.Model(inputs, keras.layers.Dense(11)(moe(x) + moe(x)))

        class Subclassed(keras.Model):
            def __init__(self):
                super().__init__()
                self.embedding = keras.layers.Embedding(11, 4)
                self.moe = SparseMoE(6, 5, k=2)
                self.out = keras.layers.Dense(11)

            def call(self, x, training=False):
                return self.out(self.moe(self.embedding(x), training=training))

        for model in (functional, Subclassed()):
            self.assert_trains(model, self.tokens(6, 5))

    def test_under_xla(self):
        model = recurrent_model(KINDS["flat"])
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=True)
        x = self.tokens(6, 5)
        self.assertAllEqual(np.isfinite(model.fit(x, x, verbose=0).history["loss"]), [True])

    @parameterized.parameters("mixed_bfloat16", "mixed_float16", "bfloat16", "float32", "float64")
    def test_dtype_policies(self, policy):
        for name in ("flat", "hierarchical", "balanced", "capacity", "biases", "recompute"):
            with self.subTest(name):
                layer = SparseMoE(**KINDS[name], dtype=policy)
                x = tf.cast(self.normal(7, 4), layer.compute_dtype)
                with tf.GradientTape() as tape:
                    y = layer(x, training=True)
                    loss = tf.reduce_sum(tf.cast(y, tf.float32)) + tf.add_n(layer.losses)
                self.assertEqual(y.dtype, layer.compute_dtype)
                self.assertEqual(layer.experts.hidden_kernel.dtype, layer.variable_dtype)
                self.assertEqual(layer.gate.kernel.dtype, "float32")
                for gradient in tape.gradient(loss, [v.value for v in layer.trainable_variables]):
                    self.assertAllEqual(np.isfinite(tf.cast(gradient, tf.float32)), np.ones(gradient.shape, bool))

    def test_bfloat16_is_near_float32(self):
        x = self.normal(20, 16)
        full = SparseMoE(4, 32, k=4)
        half = SparseMoE(4, 32, k=4, dtype="mixed_bfloat16")
        full(x), half(x)
        half.set_weights(full.get_weights())
        self.assertAllClose(full(x), tf.cast(half(x), tf.float32), atol=0.05)

    def test_unknown_batch_and_time(self):
        layer = SparseMoE(6, 5, k=2)
        layer.build((None, None, 4))
        call = tf.function(layer, input_signature=[tf.TensorSpec([None, None, 4])])
        for shape in ((2, 3, 4), (1, 1, 4), (0, 3, 4), (5, 7, 4)):
            x = self.normal(*shape)
            self.assertAllClose(call(x), layer(x), atol=1e-5)
        self.assertEqual(call.experimental_get_tracing_count(), 1)

    def test_stateless_call_of_an_array(self):
        layer, x = SparseMoE(4, 5, k=2), self.normal(6, 3)
        layer.build((None, 3))
        output, _ = layer.stateless_call(layer.trainable_variables, layer.non_trainable_variables, x)
        self.assertAllClose(output, layer(x))

    def test_one_trace_for_all_loads(self):
        """Routing is data: other experts chosen, another number of tokens each, but no new trace."""
        layer = SparseMoE(6, 5, k=2)
        layer.build((9, 4))
        call = tf.function(lambda x: layer(x, training=True))
        for _ in range(5):
            call(tf.constant(self.normal(9, 4)))
        self.assertEqual(call.experimental_get_tracing_count(), 1)

    def test_an_answer_does_not_depend_on_the_rest_of_the_batch(self):
        layer = SparseMoE(16, 5, k=2)
        x = self.normal(50, 8)
        together = layer(x)  # untrained too: ties are broken by what a token is, not by where it stands
        self.assertAllClose(together[17:18], layer(x[17:18]), atol=1e-6)
        self.assertAllClose(together[::-1], layer(x[::-1]), atol=1e-6)


class ErrorsTest(TestCase):
    @parameterized.named_parameters(
        ("no_experts", {"num_experts": 0}, "num_experts=0"),
        ("negative_experts", {"num_experts": -4}, "num_experts=-4"),
        ("fractional_experts", {"num_experts": 4.0}, "num_experts=4.0"),
        ("true_experts", {"num_experts": True}, "num_experts=True"),
        ("k_above_experts", {"k": 9}, "k=9, num_experts=8"),
        ("k_zero", {"k": 0}, "k=0"),
        ("k_fraction", {"k": 1.5}, "k=1.5"),
        ("k_pair_with_one_level", {"k": (2, 2)}, "num_experts=8"),
        ("pair_with_one_k", {"num_experts": (4, 2)}, "k=2"),
        ("triple", {"num_experts": (4, 2, 2), "k": (2, 1)}, r"num_experts=\(4, 2, 2\)"),
        ("second_k_too_large", {"num_experts": (4, 2), "k": (2, 3)}, "k=3"),
        ("unknown_gate", {"gate": "top_k"}, "gate='top_k'"),
        ("gate_of_other_size", {"gate": tf_moe.gates.NoisyTopK(4, 2)}, "num_experts=4"),
        ("gate_is_a_number", {"gate": 3}, "gate=3"),
        ("balanced_with_two_levels", {"gate": "strictly_balanced", "num_experts": (2, 4), "k": (1, 2)}, "2, 4"),
        ("no_hidden", {"expert_hidden": None}, "expert_hidden=None"),
        ("hidden_zero", {"expert_hidden": 0}, "expert_hidden=0"),
        ("importance_negative", {"importance_weight": -0.1}, "importance_weight=-0.1"),
        ("importance_text", {"importance_weight": "much"}, "importance_weight='much'"),
        ("load_nan", {"load_weight": float("nan")}, "load_weight=nan"),
        ("capacity_zero", {"capacity_factor": 0}, "capacity_factor=0"),
        ("capacity_negative", {"capacity_factor": -1.0}, "capacity_factor=-1.0"),
        ("capacity_infinite", {"capacity_factor": float("inf")}, "capacity_factor=inf"),
        ("drop_by", {"drop_by": "luck"}, "drop_by='luck'"),
        ("activation", {"activation": "no_such"}, "no_such"),
        ("initializer", {"kernel_initializer": "no_such"}, "no_such"),
        ("expert_is_a_layer", {"expert": keras.layers.Dense}, "expert=<class .*Dense"),
        ("expert_list_too_short", {"expert": [keras.layers.Dense(4)]}, "expert="),
        ("expert_of_no_layer", {"expert": lambda: 3}, "3"),
        ("expert_always_the_same", {"expert": lambda: ONE_LAYER}, "more than once"),
    )
    def test_arguments(self, arguments, received):
        with self.assertRaisesRegex(ValueError, received):
            SparseMoE(**{"num_experts": 8, "expert_hidden": 3, "k": 2, **arguments})

    @parameterized.named_parameters(
        ("rank_1", np.zeros(4, "float32"), None, r"\(4,\)"),
        ("integers", np.zeros((2, 4), "int32"), None, "int32"),
        ("mask_too_long", np.zeros((2, 3, 4), "float32"), np.ones((2, 4), bool), r"\(2, 4\)"),
        ("mask_with_width", np.zeros((2, 3, 4), "float32"), np.ones((2, 3, 4), bool), r"\(2, 3, 4\)"),
        ("mask_of_another_batch", np.zeros((2, 3, 4), "float32"), np.ones(3, bool), r"\(3,\)"),
    )
    def test_inputs(self, x, mask, received):
        with self.assertRaisesRegex(ValueError, received):
            SparseMoE(8, 3, k=2)(x, mask=mask)

    def test_other_width_than_built_for(self):
        layer = SparseMoE(8, 3, k=2)
        layer(self.normal(2, 4))
        with self.assertRaisesRegex(ValueError, "4"):
            layer(self.normal(2, 5))

    def test_unknown_width(self):
        with self.assertRaisesRegex(ValueError, "static width"):
            SparseMoE(8, 3, k=2)(keras.Input((3, None)))

    def test_symbolic_integers(self):
        with self.assertRaisesRegex(ValueError, "int32"):
            SparseMoE(8, 3, k=2)(keras.Input((3, 4), dtype="int32"))

    def test_experts_that_change_the_width(self):
        with self.assertRaisesRegex(ValueError, "width 4"):
            SparseMoE(3, k=2, expert=lambda: keras.layers.Dense(5))(self.normal(2, 4))

    def test_a_config_without_its_experts(self):
        config = SparseMoE(3, k=2, expert=lambda: keras.layers.Dense(4)).get_config()
        with self.assertRaisesRegex(ValueError, "Received: {'lost'"):
            SparseMoE.from_config({**config, "expert": {"lost": []}})
