"""What every gate in `GATES` must do. A new one needs a case in `cases.py`, and tests of what is its own."""

import inspect

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import references
from tests.base import TestCase
from tests.gates.cases import CASES, D, T
from tests.gates.helpers import dense, fix_noise, random_weights
from tests.mesh.helpers import Program, strategy_on
from tf_moe import gates
from tf_moe.layers import SparseMoE
from tf_moe.losses import cv_squared

G = 3

SEVERAL = [name for name in CASES if gates.GATES[name].can_be_several]
# What is compiled, with a number of gates: several of those that choose by group, and over the batch, stand for all.
FORMS = [*((name, None) for name in CASES), ("hierarchical", G), ("expert_choice", G)]
every_gate = parameterized.named_parameters((name, name) for name in CASES)
with_logits = parameterized.named_parameters((name, name) for name, case in CASES.items() if case.logits)
that_can_be_several = parameterized.named_parameters((name, name) for name in SEVERAL)


class EveryGateTest(TestCase):
    def gate(self, name, noises=None, **options):
        """With random weights, far enough from even for clear choices; it draws these noises."""
        case = CASES[name]
        gate = gates.get(name, case.num_experts, case.k, seed=3, **{**case.options, **options})
        random_weights(gate, D, self.rng)
        case.prepare(gate, self.rng)
        if noises:
            fix_noise(gate, *noises)
        return gate

    def noises(self, name):
        return [self.rng.standard_normal(shape) for shape in CASES[name].noises]

    @staticmethod
    def weights_of(gate):
        return {w.name: w.numpy().astype("float64") for w in gate.trainable_variables}

    def test_none_is_without_a_case(self):
        self.assertEqual(set(CASES), set(gates.GATES))

    @every_gate
    def test_by_name_in_the_layer(self, name):
        """It has the losses that the gate needs, unless it is given others."""
        case, kind = CASES[name], gates.GATES[name]
        layer = SparseMoE(case.num_experts, 5, k=case.k, gate=name, seed=7)
        self.assertIs(type(layer.gate), kind)
        self.assertEqual((layer.k, layer.gate.seed), (case.total if name == "dense_softmax" else case.k, 7))
        weight = 0.1 if name in ("noisy_top_k", "hierarchical", "strictly_balanced") else 0.0
        self.assertEqual((layer.importance_weight, layer.load_weight), (weight, weight))
        layer = SparseMoE(case.num_experts, 5, k=case.k, gate=name, importance_weight=0.3, load_weight=0)
        self.assertEqual((layer.importance_weight, layer.load_weight), (0.3, 0.0))

    @every_gate
    def test_values_and_gradients(self, name):
        """Against the formula: gate values, importance, the load where it is a count, and slopes of these."""
        case, noises, x = CASES[name], self.noises(name), self.rng.standard_normal((T, D))
        gate = self.gate(name, noises)
        weights = self.weights_of(gate)
        over_gates, over_importance = self.rng.standard_normal((T, case.total)), self.rng.standard_normal(case.total)
        for training in (False, True):

            def reference(*values, training=training):
                values = case.values(x, dict(zip(weights, values, strict=True)), noises, training)
                return (over_gates * values).sum() + (over_importance * values.sum(axis=0)).sum()

            with tf.GradientTape() as tape:
                routing = gate(tf.constant(x, tf.float32), training=training)
                y = tf.reduce_sum(over_gates.astype("float32") * dense(routing, case.total))
                y += tf.reduce_sum(over_importance.astype("float32") * routing.importance)
            expected = case.values(x, weights, noises, training)
            self.assertAllClose(dense(routing, case.total), expected, rtol=1e-4, atol=1e-5)
            self.assertAllClose(routing.importance, expected.sum(axis=0), rtol=1e-4, atol=1e-4)
            if not training:
                self.assertAllEqual(routing.load, np.count_nonzero(expected, axis=0))
                self.assertEqual(float(routing.loss), 0.0)
            slopes = tape.gradient(y, sources(gate), unconnected_gradients="zero")
            expected = references.gradients(reference, list(weights.values()))
            for weight, slope, want in zip(weights, slopes, expected, strict=True):
                self.assertAllClose(slope, want, rtol=5e-3, atol=1e-3, msg=f"{weight} training={training}")

    @every_gate
    def test_masked_tokens_count_nowhere(self, name):
        """They hold NaN, and all is as with the others alone: values, statistics, losses and gradients."""
        case = CASES[name]
        gate = self.gate(name, **case.with_z_loss())
        x, mask, noises = self.normal(T, D), np.arange(T) % 3 > 0, self.noises(name)
        x[~mask] = np.nan
        each = [len(noise) // T for noise in noises]  # rows of a token
        left = [n[np.repeat(mask, times)] for n, times in zip(noises, each, strict=True)]
        over_gates = self.normal(T, case.total)

        def compute(x, over_gates, noises, training, **arguments):
            if noises:
                fix_noise(gate, *noises)
            return decide(gate, x, over_gates, training=training, **arguments)

        for training in (False, True):
            masked, slopes = compute(x, over_gates, noises, training, mask=tf.constant(mask))
            removed, expected = compute(x[mask], over_gates[mask], left, training)
            self.assertAllEqual(dense(masked, case.total).numpy()[~mask], np.zeros(((~mask).sum(), case.total)))
            self.assertAllClose(dense(masked, case.total).numpy()[mask], dense(removed, case.total), atol=1e-5)
            for part in ("importance", "load", "loss"):
                self.assertAllClose(getattr(masked, part), getattr(removed, part), rtol=1e-4, atol=1e-5, msg=part)
            for weight, slope, want in zip(gate.trainable_variables, slopes, expected, strict=True):
                self.assertAllClose(slope, want, rtol=1e-3, atol=1e-4, msg=weight.name)
                if training:  # every weight learns
                    self.assertGreater(np.abs(slope).max(), 1e-5, weight.name)
            nothing, slopes = compute(x, over_gates, noises, training, mask=tf.zeros(T, tf.bool))
            for value in (nothing.combine_weights, nothing.importance, nothing.load, nothing.loss, *slopes):
                self.assertAllEqual(value, np.zeros(np.shape(value)))

    @with_logits
    def test_z_loss(self, name):
        case, noises, x = CASES[name], self.noises(name), self.rng.standard_normal((T, D))
        plain, gate = (self.gate(name, noises, z_loss_weight=weight) for weight in (0.0, 0.5))
        plain.set_weights(gate.get_weights())
        weights = self.weights_of(gate)
        values = case.values(x, weights, noises, training=True)
        expected = sum(0.5 * references.z_loss(logits) for logits in case.logits(x, weights, noises, values))
        tokens = x.astype("float32")
        added = gate(tokens, training=True).loss - plain(tokens, training=True).loss
        self.assertAllClose(added, expected, rtol=1e-4)
        self.assertEqual(float(gate(tokens).loss), 0.0)

    @every_gate
    def test_config_has_every_argument(self, name):
        case = CASES[name]
        options = {**case.with_z_loss(0.25), **({"num_gates": 2} if name in SEVERAL else {})}
        gate = gates.get(name, case.num_experts, case.k, seed=3, **options)
        again = gates.get(keras.saving.serialize_keras_object(gate), gate.num_experts, gate.k)
        self.assertIs(type(again), gates.GATES[name])
        config = again.get_config()
        self.assertEqual(config, gate.get_config())
        self.assertContainsSubset(set(inspect.signature(type(gate).__init__).parameters) - {"self", "kwargs"}, config)
        self.assertEqual(config["seed"], 3)
        for option, value in options.items():
            if "initializer" not in option:
                self.assertEqual(config[option], value)
        for unknown in ("z_loss_wait", "colour"):
            with self.assertRaisesRegex(ValueError, unknown):
                gates.get(name, case.num_experts, case.k, **{unknown: 1.0})

    @every_gate
    def test_in_the_layer_both_dispatchers_agree(self, name):
        """With each other, and with the gated sum of all experts."""
        case, x, mask = CASES[name], self.normal(T, D), tf.constant(np.arange(T) % 4 > 0)
        gate = gates.get(name, case.num_experts, case.k, **case.options)
        layer = SparseMoE(case.num_experts, 5, k=case.k, gate=gate)
        layer.build((None, D))
        layer.set_weights([self.normal(*w.shape) for w in layer.get_weights()])
        other = SparseMoE.from_config({**layer.get_config(), "capacity_factor": 100.0, "name": "other"})
        other.build((None, D))
        other.set_weights(layer.get_weights())
        hidden, output = (np.asarray(w, np.float64) for w in (layer.experts.hidden_kernel, layer.experts.output_kernel))
        experts = np.einsum("teh,ehd->ted", np.maximum(np.einsum("td,edh->teh", x, hidden), 0), output)
        for training in (False, True):
            noises = self.noises(name)
            outputs = []
            for each in (layer, other):
                if noises:
                    fix_noise(each.gate, *noises)
                outputs.append(each(x, mask=mask, training=training))
            self.assertEqual(float(other.balance_metrics["dropped_fraction"].result()), 0.0)
            routing = layer.route(x, mask=mask, training=training)  # the noises go round
            expected = np.einsum("te,ted->td", routing.gates, experts)
            for y in outputs:
                self.assertAllClose(y, expected, rtol=1e-4, atol=1e-4)

    @every_gate
    def test_any_number_of_tokens_in_one_trace(self, name):
        case, gate = CASES[name], self.gate(name)

        @tf.function(input_signature=[tf.TensorSpec([None, D]), tf.TensorSpec([None], tf.bool)])
        def call(x, mask):
            return gate(x, mask=mask, training=True), gate(x, mask=mask)

        for tokens in (8, 1, 0):
            x = self.normal(tokens, D)
            trained, routing = call(x, tf.ones(tokens, tf.bool))
            self.assertTrue(np.all(np.isfinite(trained.combine_weights)) and np.isfinite(trained.loss))
            self.assertAllClose(tf.reduce_sum(trained.importance), tf.reduce_sum(trained.combine_weights))
            self.assertAllClose(dense(routing, case.total), dense(gate(x), case.total))
            self.assertAllClose(routing.load, gate(x).load)
        self.assertEqual(call.experimental_get_tracing_count(), 1)

    @that_can_be_several
    def test_several_are_one_whose_kernels_depend_on_the_token(self, name):
        """All is as with one gate over all tokens, each in the place of its own; those of unknown ids are masked."""
        case, noises = CASES[name], self.noises(name)
        gate = self.gate(name, noises, num_gates=G, **case.with_z_loss())
        one = gates.get(name, case.num_experts, case.k, **case.with_z_loss())
        one.build((None, G * D))
        one.set_weights([as_one(w, w.value) for w in gate.weights])
        if noises:
            fix_noise(one, *([np.tile(n, (1, G)) for n in noises] if name == "switch" else noises))  # of features
        x, mask, ids = self.normal(T, D), self.rng.random(T) < 0.8, self.rng.integers(-1, G + 1, T)
        ids[0], mask[0] = 0, True
        known = (ids >= 0) & (ids < G)
        wide = (np.eye(G)[np.clip(ids, 0, G - 1)][:, :, None] * x[:, None]).reshape(T, G * D).astype("float32")
        x[~mask] = np.nan
        over_gates = self.normal(T, case.total)

        for training in (False, True):
            ours, slopes = decide(gate, x, over_gates, training=training, mask=mask, gate_id=ids)
            expected, wanted = decide(one, wide, over_gates, training=training, mask=mask & known)
            self.assertAllClose(dense(ours, case.total), dense(expected, case.total), rtol=1e-4, atol=1e-5)
            for part in ("importance", "load", "loss"):
                self.assertAllClose(getattr(ours, part), getattr(expected, part), rtol=1e-4, atol=1e-5, msg=part)
            for weight, slope, want in zip(gate.trainable_variables, slopes, wanted, strict=True):
                self.assertAllClose(as_one(weight, slope), want, rtol=1e-3, atol=1e-4, msg=weight.name)

    def test_under_xla(self):
        """All in one program: compiling takes its time."""
        x, mask, ids = self.normal(T, D), tf.constant(np.arange(T) % 3 > 0), self.rng.integers(-1, G, T)
        built = [
            self.gate(name, self.noises(name), num_gates=number, **CASES[name].with_z_loss()) for name, number in FORMS
        ]
        compiled = tf.function(step_of(built), jit_compile=True)(x, mask, ids)
        self.assert_close(compiled, step_of(built)(tf.constant(x), mask, tf.constant(ids)))

    @parameterized.parameters((2, 1), (6, 3))
    def test_on_a_mesh(self, devices, replicas):
        """The devices have the numbers of one. What the layer makes of them there is in `distribute`."""
        tokens, strategy = 18, strategy_on(devices, replicas)
        x, mask, ids = self.normal(tokens, D), np.arange(tokens) % 3 > 0, self.rng.integers(-1, G, tokens)
        one, many = [], []
        for name, number in FORMS:
            case = CASES[name]
            options = {"num_gates": number, **case.with_z_loss()}
            one.append(random_weights(gates.get(name, case.num_experts, case.k, 3, **options), D, self.rng))
            with strategy.scope():
                many.append(gates.get(name, case.num_experts, case.k, 3, **options))
                many[-1].build((None, D))
            many[-1].set_weights(one[-1].get_weights())
        found = Program(strategy, step_of(many))(x, mask, ids)
        self.assert_close(found, step_of(one)(tf.constant(x), tf.constant(mask), tf.constant(ids)))

    def assert_close(self, found, expected):
        """That both are what `step_of` gates computes."""
        for form, *both in zip(FORMS, found, expected, strict=True):
            for ours, want in zip(*map(tf.nest.flatten, both), strict=True):
                self.assertAllClose(ours, want, rtol=1e-3, atol=1e-4, msg=form)


def sources(gate):
    """The tensors of its weights: of Keras's variables, a tape gives None for one without gradient, never zeros."""
    return [w.value for w in gate.trainable_variables]


def decide(gate, x, over_gates, **arguments):
    """The routing, and the slopes of a scalar that all of it goes into, each gate value by a number `(T, E)`."""
    with tf.GradientTape() as tape:
        routing = gate(x, **arguments)
        y = tf.reduce_sum(over_gates * dense(routing, over_gates.shape[-1])) + routing.loss
        y += cv_squared(routing.importance) + cv_squared(routing.load)
    return routing, tape.gradient(y, sources(gate), unconnected_gradients="zero")


def as_one(weight, value):
    """The same weight of one gate for tokens of width G * D, where the features of gate g are the g-th of G blocks."""
    if weight.name.startswith("group_"):  # (G a, D, b) -> (a, G D, b)
        groups, per_group = weight.shape[0] // G, weight.shape[2]
        value = tf.transpose(tf.reshape(value, [G, groups, D, per_group]), [1, 0, 2, 3])
        return tf.reshape(value, [groups, G * D, per_group])
    return tf.reshape(value, [G * D, -1]) if "kernel" in weight.name else value


def step_of(built):
    """What gates of these forms decide, as one function."""

    def step(x, mask, ids):
        return [statistics(gate, CASES[name].total, x, mask, ids) for (name, _), gate in zip(FORMS, built, strict=True)]

    return step


def statistics(gate, num_experts, x, mask, ids):
    """All that a gate decides, in training and at evaluation, and gradients; with ids where it takes them."""
    options = {"gate_id": ids} if gate.takes_gate_id else {}
    with tf.GradientTape() as tape:
        routing = gate(x, mask=mask, training=True, **options)
        matrix = dense(routing, num_experts)
        loss = cv_squared(routing.importance) + cv_squared(routing.load) + routing.loss + tf.reduce_sum(matrix**2)
    slopes = tape.gradient(loss, sources(gate), unconnected_gradients="zero")
    evaluated = gate(x, mask=mask, **options)
    return matrix, loss, routing.load, slopes, dense(evaluated, num_experts), evaluated.load
