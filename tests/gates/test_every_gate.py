"""What every gate in `GATES` must do: a new one needs a case here, and tests of its own for what is its own."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import references
from tests.base import TestCase
from tests.gates.helpers import dense, fix_noise, random_weights
from tests.mesh.helpers import Program, strategy_on
from tf_moe import gates
from tf_moe.layers import SparseMoE
from tf_moe.losses import cv_squared

T, D = 12, 3


class Case(NamedTuple):
    """A gate, and its formula in float64.

    Attributes:
        values: From tokens (T, D), the gate's weights by name, its noises and whether it trains to gate values (T, E).
        num_experts: As the gate has it.
        k: As the gate has it.
        noises: Shapes of what the gate draws in training for T tokens.
        logits: From tokens, weights, noises and gate values in training to the logits that its z-loss is about, a list
            of matrices; None for a gate without.
        options: Arguments of the gate that are not their defaults.
    """

    values: Callable
    num_experts: int | tuple[int, int] = 4
    k: int | tuple[int, int] | None = 2
    noises: tuple = ()
    logits: Callable | None = lambda x, w, noises, gates: [x @ w["kernel"]]
    options: dict = {}

    @property
    def total(self):
        return int(np.prod(self.num_experts))


def scores(x, w):
    return np.array([references.softmax(h) for h in x @ w["kernel"]])


def share(x, k, num_experts):
    """m, the tokens of an expert that chooses them."""
    return round(k * len(x) / num_experts)


def noisy_top_k(x, w, noises, training):
    noise = noises[0] if training else np.zeros((len(x), 4))
    return references.noisy_top_k(x, w["kernel"], w["noise_kernel"], noise, 2)[0]


def hierarchical(x, w, noises, training):
    if not training:
        noises = np.zeros((len(x), 3)), np.zeros((2 * len(x), 4))
    noises = noises[0], noises[1].reshape(-1, 2, 4)
    weights = (w[name] for name in ("kernel", "noise_kernel", "group_kernel", "group_noise_kernel"))
    return references.hierarchical(x, *weights, noises, (2, 2))[0]


def logits_of_levels(x, w, noises, gates):
    chosen = gates.reshape(-1, 3, 4).sum(axis=2) > 0
    return [x @ w["kernel"], np.array([x[t] @ w["group_kernel"][group] for t, group in np.argwhere(chosen)])]


def strictly_balanced(x, w, noises, training):
    s = scores(x, w)
    mask = references.batchwise_mask(s, share(x, 2, 4)) if training else s > w["thresholds"] / 4
    return references.masked_gates(s, mask)


def switch(x, w, noises, training):
    return references.switch(logits_with_jitter(x, w, noises)[0] if training else x @ w["kernel"])[0]


def logits_with_jitter(x, w, noises, gates=None):
    uniform = np.vectorize(references.normal_cdf)(noises[0])
    return [x * (1 + 0.2 * (2 * uniform - 1)) @ w["kernel"]]


def dense_softmax(x, w, noises, training):
    return scores(x, w)


def expert_choice(x, w, noises, training):
    return scores(x, w) * references.batchwise_mask(scores(x, w), share(x, 2, 4))


def sinkhorn(x, w, noises, training):
    logits = x @ w["kernel"]
    balanced = references.sinkhorn(np.exp(logits), 4) if training else logits
    chosen = np.array([np.isin(np.arange(4), references.top_k_set(row, 2)) for row in balanced])
    return chosen / (1 + np.exp(-logits))


CASES = {
    "noisy_top_k": Case(noisy_top_k, noises=((T, 4),), options={"noise_kernel_initializer": "ones"}),
    "hierarchical": Case(hierarchical, (3, 4), (2, 2), ((T, 3), (2 * T, 4)), logits_of_levels),
    "strictly_balanced": Case(strictly_balanced),
    "switch": Case(switch, 4, 1, ((T, D),), logits_with_jitter, {"jitter": 0.2, "aux_loss_weight": 0.3}),
    "dense_softmax": Case(dense_softmax, k=None, options={"kernel_initializer": "ones"}),
    "expert_choice": Case(expert_choice),
    "sinkhorn": Case(sinkhorn, options={"iterations": 4}),
}
every_gate = parameterized.named_parameters((name, name) for name in CASES)
with_logits = parameterized.named_parameters((name, name) for name, case in CASES.items() if case.logits)


class EveryGateTest(TestCase):
    def gate(self, name, noises=None, **options):
        """With random weights, far enough from even for clear choices; it draws these noises."""
        case = CASES[name]
        gate = gates.get(name, case.num_experts, case.k, seed=3, **{**case.options, **options})
        random_weights(gate, D, self.rng)
        if name == "strictly_balanced":
            gate.thresholds.assign([0.01, *self.rng.uniform(0.5, 1.5, 3)])  # the first lets too many pass, and learns
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
        case, options = CASES[name], {"z_loss_weight": 0.1} if CASES[name].logits else {}
        gate = self.gate(name, **options)
        x, mask, noises = self.normal(T, D), np.arange(T) % 3 > 0, self.noises(name)
        x[~mask] = np.nan
        each = [len(noise) // T for noise in noises]  # rows of a token
        left = [n[np.repeat(mask, times)] for n, times in zip(noises, each, strict=True)]
        over_gates = self.normal(T, case.total)

        def compute(x, over_gates, noises, training, **arguments):
            if noises:
                fix_noise(gate, *noises)
            with tf.GradientTape() as tape:
                routing = gate(x, training=training, **arguments)
                y = tf.reduce_sum(over_gates * dense(routing, case.total)) + routing.loss
                y += cv_squared(routing.importance) + cv_squared(routing.load)
            return routing, tape.gradient(y, sources(gate), unconnected_gradients="zero")

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
        options = {**case.options, **({"z_loss_weight": 0.25} if case.logits else {})}
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
        layer = SparseMoE(case.num_experts, 5, k=case.k, gate=name)
        self.assertEqual(layer.k, case.total if name == "dense_softmax" else case.k)
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

    def test_under_xla(self):
        """All in one program: compiling takes its time."""
        x, mask = self.normal(T, D), tf.constant(np.arange(T) % 3 > 0)
        options = {name: {"z_loss_weight": 0.1} if case.logits else {} for name, case in CASES.items()}
        built = {name: self.gate(name, self.noises(name), **options[name]) for name in CASES}

        def step(x, mask):
            return {name: statistics(gate, CASES[name].total, x, mask) for name, gate in built.items()}

        compiled, plain = tf.function(step, jit_compile=True)(x, mask), step(tf.constant(x), mask)
        for name in built:
            for ours, expected in zip(*map(tf.nest.flatten, (compiled[name], plain[name])), strict=True):
                self.assertAllClose(ours, expected, rtol=1e-3, atol=1e-4, msg=name)

    def test_on_a_mesh(self):
        """Two devices have the numbers of one. What the layer makes of them there is in `distribute`."""
        tokens, strategy = 16, strategy_on(2)
        x, mask = self.normal(tokens, D), np.arange(tokens) % 3 > 0
        one, many = {}, {}
        for name, case in CASES.items():
            options = {**case.options, **({"z_loss_weight": 0.1} if case.logits else {})}
            one[name] = random_weights(gates.get(name, case.num_experts, case.k, 3, **options), D, self.rng)
            with strategy.scope():
                many[name] = gates.get(name, case.num_experts, case.k, 3, **options)
                many[name].build((None, D))
            many[name].set_weights(one[name].get_weights())

        def step_of(built):
            def step(x, mask):
                return {name: statistics(gate, CASES[name].total, x, mask) for name, gate in built.items()}

            return step

        found = Program(strategy, step_of(many))(x, mask)
        expected = step_of(one)(tf.constant(x), tf.constant(mask))
        for name in CASES:
            for ours, want in zip(*map(tf.nest.flatten, (found[name], expected[name])), strict=True):
                self.assertAllClose(ours, want, rtol=1e-3, atol=1e-4, msg=name)


def sources(gate):
    """The tensors of its weights: of Keras's variables, a tape gives None for one without gradient, never zeros."""
    return [w.value for w in gate.trainable_variables]


def statistics(gate, num_experts, x, mask):
    """All that a gate decides, in training and at evaluation, and gradients."""
    with tf.GradientTape() as tape:
        routing = gate(x, mask=mask, training=True)
        matrix = dense(routing, num_experts)
        loss = cv_squared(routing.importance) + cv_squared(routing.load) + routing.loss + tf.reduce_sum(matrix**2)
    slopes = tape.gradient(loss, sources(gate), unconnected_gradients="zero")
    evaluated = gate(x, mask=mask)
    return matrix, loss, routing.load, slopes, dense(evaluated, num_experts), evaluated.load
