"""What the layer computes: against the paper's formula, over gates, dispatchers, masks and dtypes."""

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe import gates
from tf_moe.layers import SparseMoE, record_routings
from tf_moe.layers.balance import BALANCE_METRICS
from tf_moe.losses import cv_squared
from tf_moe.ops.noise import Noise

ENOUGH = 100.0  # a capacity factor that drops nothing
KINDS = {
    "noisy_top_k": {"num_experts": 6, "k": 2},
    "hierarchical": {"num_experts": (3, 2), "k": (2, 1)},
    "strictly_balanced": {"num_experts": 6, "k": 2, "gate": "strictly_balanced"},
}


def every(**more):
    """Parameters for each kind of gate with each dispatcher."""
    return parameterized.named_parameters(
        (f"{kind}_{name}", {**arguments, "capacity_factor": factor, **more})
        for kind, arguments in KINDS.items()
        for name, factor in (("sorted", None), ("capacity", ENOUGH))
    )


def shuffle_gate(layer, rng):
    """Give an untrained gate random weights, so that tokens differ for it."""
    layer.gate.set_weights([rng.standard_normal(w.shape) for w in layer.gate.get_weights()])
    return layer


def slow_experts(layer, x):
    """Every expert's output for every token in float64, (T, E, D)."""
    hidden, output = (np.asarray(w, np.float64) for w in (layer.experts.hidden_kernel, layer.experts.output_kernel))
    hidden = np.maximum(np.einsum("td,edh->teh", x.astype(np.float64), hidden), 0)
    return np.einsum("teh,ehd->ted", hidden, output)


class ValuesTest(TestCase):
    @every()
    def test_is_the_gated_sum_of_experts(self, arguments):
        layer = SparseMoE(expert_hidden=7, **arguments)
        x = self.normal(3, 5, 4)
        layer.build(x.shape)
        shuffle_gate(layer, self.rng)
        gates = layer.route(x).gates
        expected = np.einsum("te,ted->td", gates, slow_experts(layer, x.reshape(-1, 4)))
        self.assertAllClose(layer(x), expected.reshape(x.shape), rtol=1e-4, atol=1e-4)

    @every(output_activation="sigmoid")
    def test_output_activation_comes_after_the_sum(self, arguments):
        x = self.normal(9, 4)
        layer = SparseMoE(expert_hidden=7, **arguments)
        plain = SparseMoE.from_config({**layer.get_config(), "output_activation": None})
        layer(x), plain(x)
        plain.set_weights(layer.get_weights())
        self.assertAllClose(layer(x), 1 / (1 + np.exp(-plain(x))), atol=1e-5)

    @every(shared_expert_hidden=3, use_bias=True, output_activation="tanh")
    def test_a_shared_expert_is_added_for_every_token(self, arguments):
        layer = SparseMoE(expert_hidden=7, **arguments)
        x, mask = self.normal(3, 5, 4), self.rng.random((3, 5)) < 0.7
        layer.build(x.shape)
        layer.set_weights([self.normal(*w.shape) for w in layer.get_weights()])
        plain = SparseMoE.from_config(
            {**layer.get_config(), "shared_expert_hidden": None, "output_activation": None, "name": "plain"}
        )
        plain.build(x.shape)
        plain.set_weights(layer.get_weights()[: len(plain.weights)])
        hidden, hidden_bias, output, output_bias = layer.get_weights()[len(plain.weights) :]
        shared = np.maximum(x.astype("float64") @ hidden + hidden_bias, 0) @ output + output_bias
        expected = np.tanh(plain(x, mask=mask) + shared) * mask[..., None]
        self.assertAllClose(layer(x, mask=mask), expected, rtol=1e-4, atol=1e-4)

    def test_a_shared_expert_has_the_settings_of_the_others(self):
        constraint, regularizer = keras.constraints.MaxNorm(2.0), keras.regularizers.L2(0.5)
        layer = SparseMoE(
            4, 3, k=2, shared_expert_hidden=5, activation="tanh", expert_dropout=0.25, dtype="mixed_bfloat16",
            kernel_initializer="ones", kernel_regularizer=regularizer, kernel_constraint=constraint,
        )  # fmt: skip
        layer.build((None, 6))
        hidden, dropout, output = layer.shared_expert.layers
        self.assertEqual((hidden.units, output.units, dropout.rate), (5, 6, 0.25))
        self.assertIs(hidden.activation, keras.activations.tanh)
        for dense in (hidden, output):
            self.assertEqual((dense.use_bias, dense.compute_dtype), (False, "bfloat16"))
            self.assertAllEqual(dense.kernel, np.ones(dense.kernel.shape))
            self.assertIs(dense.kernel_regularizer, regularizer)
            self.assertIs(dense.kernel_constraint, constraint)

    @every()
    def test_gradients_are_those_of_the_dense_formula(self, arguments):
        """The same gates and all experts computed densely, differentiated by TensorFlow."""
        layer = SparseMoE(expert_hidden=5, **arguments)
        x = tf.constant(self.normal(8, 4))
        layer.build(x.shape)
        shuffle_gate(layer, self.rng)
        upstream = self.normal(8, 4)

        def dense(x):
            hidden = tf.nn.relu(tf.einsum("td,edh->teh", x, tf.convert_to_tensor(layer.experts.hidden_kernel)))
            outputs = tf.einsum("teh,ehd->ted", hidden, tf.convert_to_tensor(layer.experts.output_kernel))
            return tf.einsum("te,ted->td", layer.route(x).gates, outputs)

        def gradients(function):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(function(x) * upstream)
            sources = [x, *(v.value for v in layer.trainable_variables)]
            return tape.gradient(loss, sources, unconnected_gradients="zero")

        for ours, expected in zip(gradients(layer), gradients(dense), strict=True):
            self.assertAllClose(ours, expected, rtol=1e-3, atol=1e-4)

    @parameterized.parameters(None, ENOUGH)
    def test_units_are_dropped_in_training_alone(self, capacity_factor):
        gate = gates.NoisyTopK(4, 2, "glorot_uniform", noisy=False)
        layer = SparseMoE(4, 16, k=2, gate=gate, capacity_factor=capacity_factor, expert_dropout=0.5, activation=None)
        x = self.normal(9, 4)
        whole = layer(x)
        draw = tf.function(layer)
        draws = [draw(x, training=True) for _ in range(200)]
        self.assertNotAllClose(draws[0], draws[1])
        self.assertAllClose(np.mean(draws, axis=0), whole, atol=0.5 * np.std(draws, axis=0).max())  # 1/14 expected
        plain = SparseMoE.from_config({**layer.get_config(), "expert_dropout": 0.0, "name": "plain"})
        plain.build(x.shape)
        plain.set_weights(layer.get_weights())
        self.assertAllEqual(plain(x), whole)
        self.assertAllEqual(plain(x, training=True), whole)

    def test_a_bank_of_layers_has_the_settings_of_the_layer(self):
        layer = SparseMoE(2, k=1, expert=lambda: keras.layers.Dense(3), recompute=True, dtype="mixed_bfloat16")
        self.assertEqual((layer.experts.recompute, layer.experts.compute_dtype), (True, "bfloat16"))
        self.assertFalse(SparseMoE(2, k=1, expert=lambda: keras.layers.Dense(3)).experts.recompute)

    @parameterized.parameters(None, ENOUGH)
    def test_all_experts_is_the_dense_mixture(self, capacity_factor):
        layer = SparseMoE(5, 6, k=5, capacity_factor=capacity_factor)
        x = self.normal(7, 4)
        layer.build(x.shape)
        shuffle_gate(layer, self.rng)
        weights = keras.ops.softmax(x @ layer.gate.kernel.numpy())
        self.assertAllClose(layer(x), np.einsum("te,ted->td", weights, slow_experts(layer, x)), rtol=1e-4, atol=1e-4)

    @parameterized.parameters(None, ENOUGH)
    def test_one_expert_is_a_feed_forward_layer(self, capacity_factor):
        layer = SparseMoE(1, 6, k=1, capacity_factor=capacity_factor, use_bias=True)
        x = self.normal(5, 4)
        layer(x)
        layer.experts.set_weights([self.normal(*w.shape) for w in layer.experts.get_weights()])
        hidden = keras.layers.Dense(6, "relu")
        output = keras.layers.Dense(4)
        twin = keras.Sequential([hidden, output])
        twin.build((None, 4))
        w1, w2, b1, b2 = (w[0] for w in layer.experts.get_weights())
        twin.set_weights([w1, b1, w2, b2])
        self.assertAllClose(layer(x, training=True), twin(x), rtol=1e-4, atol=1e-4)

    def test_both_dispatchers_agree_in_training(self):
        x = self.normal(40, 8)
        for kind, arguments in KINDS.items():
            results = []
            for factor in (None, ENOUGH):
                layer = SparseMoE(expert_hidden=5, capacity_factor=factor, seed=3, **arguments)
                layer.build(x.shape)
                same = [np.sin(np.arange(w.size)).reshape(w.shape) for w in layer.experts.get_weights()]
                layer.experts.set_weights(same)
                results.append((layer(x, training=True), layer.losses))
            with self.subTest(kind):
                self.assertAllClose(results[0], results[1], rtol=1e-4, atol=1e-5)


class MaskTest(TestCase):
    @every(output_activation="sigmoid")
    def test_masked_steps_might_as_well_not_be_there(self, arguments):
        layer = SparseMoE(expert_hidden=7, **arguments)
        x = self.normal(4, 6, 5)
        mask = self.rng.random((4, 6)) < 0.6
        layer.build(x.shape)
        shuffle_gate(layer, self.rng)
        y = layer(x, mask=mask).numpy()
        self.assertAllClose(y[mask], layer(x[mask]), rtol=1e-4, atol=1e-5)
        self.assertAllEqual(y[~mask], np.zeros_like(y[~mask]))
        masked, without = layer.route(x, mask=mask), layer.route(x[mask])
        self.assertAllClose(masked.importance, without.importance, atol=1e-4)
        self.assertAllClose(masked.load, without.load)
        self.assertAllEqual(tf.reduce_sum(masked.combine_weights, -1)[~mask.reshape(-1)], np.zeros((~mask).sum()))

    @every()
    def test_losses_and_gradients_do_not_see_masked_steps(self, arguments):
        layer = SparseMoE(expert_hidden=7, **arguments)
        mask = self.rng.random((4, 6)) < 0.6
        layer.build((4, 6, 5))
        layer.gate.new_noise = lambda: Noise(tf.constant([1, 2]))
        x = self.normal(4, 6, 5)
        other = np.where(mask[..., None], x, 1e3 * self.normal(4, 6, 5)).astype("float32")

        def loss_and_gradients(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(x, mask=mask, training=True) ** 2) + tf.add_n(layer.losses)
            return loss, tape.gradient(loss, layer.trainable_variables)

        (loss, gradients), (other_loss, other_gradients) = loss_and_gradients(x), loss_and_gradients(other)
        self.assertAllClose(loss, other_loss)
        for a, b in zip(gradients, other_gradients, strict=True):
            self.assertAllClose(a, b, rtol=1e-4, atol=1e-5)

    @every()
    def test_all_masked(self, arguments):
        layer = SparseMoE(expert_hidden=7, **arguments)
        x = tf.constant(self.normal(2, 3, 4))
        with tf.GradientTape() as tape:
            y = layer(x, mask=tf.zeros([2, 3], tf.bool), training=True)
            loss = tf.reduce_sum(y) + tf.add_n(layer.losses)
        self.assertAllEqual(y, np.zeros([2, 3, 4]))
        variables = [v.value for v in layer.trainable_variables]
        for gradient in tape.gradient(loss, variables, unconnected_gradients="zero"):
            self.assertAllEqual(gradient, np.zeros(gradient.shape))

    def test_masked_steps_take_no_slot(self):
        """Room for one token in the one expert: it goes to the first that counts, not to padding before it."""
        layer = SparseMoE(1, 3, k=1, capacity_factor=0.2)
        x = self.normal(5, 4)
        full = SparseMoE(1, 3, k=1)
        layer(x), full(x)
        full.set_weights(layer.get_weights())
        y = layer(x, mask=[False, False, True, True, False])
        self.assertAllClose(y[2], full(x)[2])
        self.assertAllEqual(y[3], np.zeros(4))

    def test_a_function_for_inputs_of_any_shape(self):
        layer = SparseMoE(6, 5, k=2)
        x = self.normal(2, 3, 4)
        expected = layer(x)
        function = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None])])
        self.assertAllClose(function(x), expected, atol=1e-6)
        route = tf.function(lambda x: layer.route(x).expert_index, input_signature=[tf.TensorSpec([None, None])])
        self.assertAllEqual(route(x[0]), layer.route(x[0]).expert_index)

    def test_name(self):
        first, second = SparseMoE(3, 5, k=2), SparseMoE(3, 5, k=2)
        self.assertRegex(first.name, r"^sparse_moe(_\d+)?$")
        self.assertNotEqual(first.name, second.name)

    @parameterized.parameters(None, 1.0)
    def test_a_mask_of_steps_that_are_several_positions(self, capacity_factor):
        """As Keras passes it on, of (B, T), where inputs are (B, T, N, D)."""
        layer = SparseMoE(6, 5, k=2, capacity_factor=capacity_factor)
        x, mask = self.normal(2, 3, 4, 5), np.array([[True, False, True], [False, True, True]])
        expected = layer(x, mask=np.repeat(mask[..., None], 4, axis=2))
        self.assertAllEqual(layer(x, mask=mask), expected)
        self.assertAllEqual(expected[~mask], np.zeros((2, 4, 5)))
        self.assertAllEqual(layer.route(x, mask=mask).load, layer.route(x[mask]).load)
        model = keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                keras.layers.Embedding(9, 20, mask_zero=True),
                keras.layers.TimeDistributed(keras.layers.Reshape((4, 5))),
                layer,
            ]
        )
        outputs = model(np.array([[3, 0, 1]]))
        self.assertAllEqual(np.any(outputs != 0, axis=(2, 3)), [[True, False, True]])

    def test_mask_is_passed_on(self):
        inputs = keras.Input((None,), dtype="int32")
        embedded = keras.layers.Embedding(9, 4, mask_zero=True)(inputs)
        outputs = SparseMoE(4, 5, k=2, name="moe")(embedded)
        pooled = keras.layers.GlobalAveragePooling1D()(outputs)
        model = keras.Model(inputs, pooled)
        short, padded = model(np.array([[3, 4, 5]])), model(np.array([[3, 4, 5, 0, 0]]))
        self.assertAllClose(short, padded, atol=1e-5)


class LossTest(TestCase):
    def test_losses_are_the_papers(self):
        layer = SparseMoE(6, 3, k=2, importance_weight=0.3, load_weight=0.7, seed=1)
        same = SparseMoE(6, 3, k=2, seed=1)
        x = self.normal(20, 4)
        layer(x, training=True)
        same.build(x.shape)
        routing = same.route(x, training=True)
        expected = 0.3 * cv_squared(routing.importance) + 0.7 * cv_squared(routing.load)
        self.assertAllClose(layer.losses, [expected])

    def test_only_in_training(self):
        layer = SparseMoE(6, 3, k=2)
        layer(self.normal(20, 4))
        self.assertEmpty(layer.losses)

    def test_none_without_weights(self):
        """So that it can be in the cell of a `keras.layers.RNN`, where no layer can add a loss."""

        class Cell(keras.layers.Layer):
            state_size = output_size = 4

            def __init__(self):
                super().__init__()
                self.cell = keras.layers.SimpleRNNCell(4)
                self.moe = SparseMoE(3, 5, k=2, importance_weight=0.0, load_weight=0.0)

            def build(self, shape):
                self.cell.build(shape)
                self.moe.build((None, 4))

            def call(self, x, states, training=False):
                h = self.moe(self.cell(x, states)[0], training=training)
                return h, [h]

        model = keras.Sequential([keras.Input((3, 4)), keras.layers.RNN(Cell(), return_sequences=True)])
        model.compile("adam", "mse")
        x = self.normal(6, 3, 4)
        self.assertTrue(np.isfinite(model.fit(x, x, verbose=0).history["loss"][0]))
        self.assertEmpty(model.losses)
        self.assertLen(self.losses_of(gate="switch"), 1)  # which has one of its own
        self.assertEmpty(self.losses_of(gate="bias_balanced"))

    def losses_of(self, **arguments):
        layer = SparseMoE(3, 5, **{"k": None if arguments["gate"] == "switch" else 2, **arguments})
        layer(self.normal(4, 6), training=True)
        return layer.losses

    def test_balance_losses_balance(self):
        """A gate biased to one expert, trained on the balance losses alone, comes to use all of them."""
        layer = SparseMoE(8, 3, k=2, importance_weight=1.0, load_weight=1.0)
        x = self.normal(200, 16)
        x[:, 0] = 1.0
        layer.build(x.shape)
        kernel = np.zeros((16, 8), "float32")
        kernel[0, 3] = 5.0
        layer.gate.kernel.assign(kernel)
        optimizer = keras.optimizers.Adam(0.1)

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                layer(x, training=True)
                loss = tf.add_n(layer.losses)
            gradients = tape.gradient(loss, layer.gate.trainable_variables)
            optimizer.apply(gradients, layer.gate.trainable_variables)
            return loss

        first = step()
        for _ in range(80):
            last = step()
        self.assertGreater(first, 2.0)
        self.assertLess(last, 0.2)

    def test_float16_and_bfloat16_losses_are_float32(self):
        for policy in ("mixed_bfloat16", "mixed_float16"):
            layer = SparseMoE(6, 3, k=2, dtype=policy)
            layer(self.normal(20, 4), training=True)
            self.assertEqual(layer.losses[0].dtype, tf.float32)


class NoiseTest(TestCase):
    def test_training_is_noisy_and_evaluation_is_not(self):
        layer = SparseMoE(6, 3, k=2)
        x = self.normal(20, 4)
        self.assertNotAllClose(layer(x, training=True), layer(x, training=True))
        self.assertAllEqual(layer(x), layer(x))

    def test_seed_repeats(self):
        x = self.normal(20, 4)
        first, second, other = (SparseMoE(6, 3, k=2, seed=s) for s in (5, 5, 6))
        for layer in (second, other, first):
            layer.build(x.shape)
            layer.set_weights(first.get_weights() or layer.get_weights())
        indices = [layer.route(x, training=True).expert_index for layer in (first, second, other)]
        self.assertAllEqual(indices[0], indices[1])
        self.assertNotAllEqual(indices[0], indices[2])

    @parameterized.parameters("experts", "shared_expert")
    def test_seed_repeats_dropout(self, part):
        """Of either alone: the weights of the other are zeros."""
        x, outputs = self.normal(20, 4), []
        for seed in (5, 5, 6):
            layer = SparseMoE(
                2, 16, k=None, gate="dense_softmax", seed=seed, expert_dropout=0.5, shared_expert_hidden=16
            )
            layer.build(x.shape)
            layer.set_weights([np.zeros(w.shape) for w in layer.get_weights()])
            for weight in getattr(layer, part).weights:
                weight.assign(np.cos(np.arange(np.prod(weight.shape))).reshape(weight.shape))
            outputs.append(layer(x, training=True))
        self.assertAllEqual(outputs[0], outputs[1])
        self.assertNotAllEqual(outputs[0], outputs[2])

    def test_noise_differs_by_layer_and_by_call(self):
        """Without a seed, and also where a model has the same layer twice."""
        first, second = SparseMoE(6, 3, k=2), SparseMoE(6, 3, k=2)
        x = self.normal(20, 4)
        for layer in (first, second):
            layer.build(x.shape)
            layer.set_weights(first.get_weights())
        model = tf.function(lambda x: [layer(x, training=True) for layer in (first, second, first)])
        outputs = [*model(x), *model(x)]
        for n, output in enumerate(outputs):
            for other in outputs[:n]:
                self.assertNotAllClose(output, other)

    def test_recompute_keeps_the_routing(self):
        """With other noise in the second computation the gradients would be those of other experts."""
        x = tf.constant(self.normal(30, 4))
        gradients = []
        layers = [SparseMoE(6, 3, k=2, seed=7, recompute=recompute) for recompute in (False, True)]
        for layer in layers:
            layer.build(x.shape)
            layer.set_weights(layers[0].get_weights())
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(x, training=True) ** 2)
            gradients.append(tape.gradient(loss, layer.trainable_variables))
        for plain, recomputed in zip(*gradients, strict=True):
            self.assertAllClose(plain, recomputed, rtol=1e-5)


class MetricsTest(TestCase):
    def test_by_hand(self):
        """Four tokens, two experts, k = 1, room for one each: both get two, one of which is dropped."""
        layer = SparseMoE(2, 3, k=1, capacity_factor=0.5, name="moe")
        x = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]], "float32")
        layer.build(x.shape)
        layer.gate.kernel.assign([[9.0, 0], [0, 9]])
        layer(x)
        results = {m.name: float(m.result()) for m in layer.metrics}
        expected = {"importance_cv": 0, "load_cv": 0, "max_over_mean_load": 1, "dropped_fraction": 0.5}
        expected["nonfinite_fraction"] = 0
        self.assertAllClose(results, {f"moe/{name}": value for name, value in expected.items()}, atol=1e-3)

    def test_are_float32_under_any_floatx(self):
        """In bfloat16 a mean over an epoch would stop counting at 256 batches."""
        self.addCleanup(keras.config.set_floatx, "float32")
        keras.config.set_floatx("bfloat16")
        layer = SparseMoE(4, 3, k=2)
        self.assertEqual({v.dtype for m in layer.metrics for v in m.variables}, {"float32"})
        self.assertLen(layer.metrics, len(BALANCE_METRICS))

    def test_are_in_the_log_of_each_layer(self):
        model = keras.Sequential([SparseMoE(4, 5, k=2, name="a"), SparseMoE(4, 5, k=2, name="b")])
        model.compile("sgd", "mse", run_eagerly=True)
        x = self.normal(8, 4)
        history = model.fit(x, x, validation_data=(x, x), verbose=0).history
        for layer in "ab":
            for name in BALANCE_METRICS:
                self.assertIn(f"{layer}/{name}", history)
                self.assertIn(f"val_{layer}/{name}", history)


class RouteTest(TestCase):
    @every()
    def test_fields(self, arguments):
        layer = SparseMoE(expert_hidden=3, **arguments)
        x = self.normal(2, 3, 4)
        for training in (False, True):
            routing = layer.route(x, training=training)
            self.assertEqual(routing.expert_index.dtype, tf.int32)
            self.assertEqual(routing.expert_index.shape[0], 6)
            self.assertEqual(routing.combine_weights.shape, routing.expert_index.shape)
            self.assertEqual(routing.gates.shape, (6, 6))
            self.assertEqual(routing.importance.shape, (6,))
            self.assertEqual(routing.load.shape, (6,))
            floats = (routing.combine_weights, routing.gates, routing.importance, routing.load)
            self.assertAllEqual([t.dtype for t in floats], [tf.float32] * 4)
            self.assertAllClose(tf.reduce_sum(routing.gates, 0), routing.importance, atol=1e-5)

    def test_is_what_a_call_decides_in_half_precision(self):
        """Also where rounding makes logits equal, or infinite: 1e5 is no number in float16."""
        x = self.normal(300, 4)
        x[7] = 1e5
        for policy in ("mixed_bfloat16", "mixed_float16", "float32"):
            for untrained in (True, False):
                layer = SparseMoE(6, 3, k=2, dtype=policy)
                layer.build(x.shape)
                if not untrained:
                    shuffle_gate(layer, self.rng)
                with record_routings() as routings:
                    layer(x)
                called, routing = routings[0][1], layer.route(x)
                self.assertAllEqual(routing.expert_index, called.expert_index)
                self.assertAllEqual(routing.combine_weights, called.combine_weights)

    def test_no_matrix_for_very_many_experts(self):
        layer = SparseMoE((128, 64), expert_hidden=1, k=(1, 1))
        self.assertIsNone(layer.route(self.normal(2, 2)).gates)

    def test_route_leaves_out_what_a_call_does(self):
        """The mask that Keras attached to the inputs counts."""
        x = keras.layers.Embedding(9, 4, mask_zero=True)(np.array([[3, 0, 5], [0, 0, 7]]))
        layer = SparseMoE(4, 5, k=2)
        self.assertAllEqual(tf.reduce_sum(layer.route(x).gates, -1) > 0, [1, 0, 1, 0, 0, 1])
        every = layer.route(x, mask=np.ones((2, 3), bool))
        self.assertAllEqual(tf.reduce_sum(every.gates, -1) > 0, [1] * 6)
