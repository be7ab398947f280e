"""The layer with any arguments, on any finite input: right, or refused before anything is computed."""

from math import prod
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.fuzz.arguments import any_arguments, is_valid, valid_arguments
from tests.fuzz.base import examples
from tests.fuzz.reference import Reference
from tf_moe.layers import SparseMoE
from tf_moe.ops.noise import Noise

# Of the numbers that a layer computes with, the distance of 1 from the next, in the half precisions that of products.
ROUNDING = {"float32": 2e-6, "float64": 2e-6, "mixed_bfloat16": 2e-2, "mixed_float16": 4e-3}
# Zero, denormal, tiny, small, usual, large and huge.
SCALES = [0.0, 1e-40, 1e-30, 1e-4, 1.0, 1e4, 1e30]
WITHOUT_LOSSES = ("dense_softmax", "expert_choice", "sinkhorn", "bias_balanced", "hash")


class SameNoise(Noise):
    """Noise of one seed for every call; `drawn` is the list of the matrices it was asked for, level by level."""

    def __init__(self, rng):
        super().__init__(tf.constant(rng.integers(2**31, size=2), tf.int32))
        self.drawn = []

    def whole(self, shape):
        self.drawn.append(super().whole(shape))
        return self.drawn[-1]

    def rows(self, start, rows, columns):
        numbers = super().rows(start, rows, columns)
        self.drawn.append(numbers)  # few enough to be one part
        return numbers


class SparseMoETest(TestCase):
    @examples(200)
    @hypothesis.given(any_arguments)
    def test_arguments_are_refused_or_right(self, arguments):
        try:
            layer = SparseMoE(expert_hidden=3, **arguments)
        except (TypeError, ValueError) as error:
            self.assertFalse(is_valid(**arguments), error)
            self.assertRegex(str(error), "Received")
        else:
            self.assertTrue(is_valid(**arguments))
            self.assertEqual(layer(np.zeros((2, 3), "float32")).shape, (2, 3))

    @examples(80)
    @hypothesis.given(
        arguments=valid_arguments(),
        shape=st.lists(st.integers(0, 5), min_size=1, max_size=3),
        width=st.integers(1, 5),
        scales=st.lists(st.sampled_from(SCALES), min_size=1, max_size=4),
        kernel=st.sampled_from([0.0, 0.5, 2.0]),
        masked=st.sampled_from([None, 0.0, 0.5, 1.0]),
        training=st.booleans(),
        form=st.sampled_from([lambda f: f] * 19 + [tf.function]),  # tracing takes its time
        seed=st.integers(0, 2**32 - 1),
    )
    def test_any_input(self, arguments, shape, width, scales, kernel, masked, training, form, seed):
        rng, tokens = np.random.default_rng(seed), prod(shape)
        # Noisy top-k by parts, as among many experts, or over whole matrices.
        self.enter_context(mock.patch("tf_moe.gates.choice.ONLY_LOGITS_FROM", 2 if rng.random() < 0.3 else 1024))
        # With oneDNN or without it, and with matrices that are large.
        self.enter_context(mock.patch("tf_moe.ops.stacked_matmul.has_onednn", return_value=rng.random() < 0.5))
        self.enter_context(mock.patch("tf_moe.ops.stacked_matmul.SMALLEST_MATRIX", 1))
        layer = SparseMoE(expert_hidden=3, **arguments)
        if arguments["dtype"] == "mixed_float16":  # which ends at 65504
            scales = [min(scale, 100.0) for scale in scales]
        x = rng.standard_normal((tokens, width)) * rng.choice(scales, (tokens, 1))
        x = tf.cast(x.astype("float32"), layer.compute_dtype)
        mask = None if masked is None else rng.random(shape) >= masked
        layer.build((*shape, width))
        layer.set_weights([rng.standard_normal(w.shape) for w in layer.get_weights()])
        layer.gate.set_weights([kernel * w for w in layer.gate.get_weights()])
        noise = SameNoise(rng)
        layer.gate.new_noise = lambda: noise
        layer.gate.bias_rate = 0.0  # or the routing below would be another than that of the step
        inputs = tf.reshape(x, [*shape, width])
        options = {}
        if arguments["gate"] == "hash" and rng.random() < 0.7:
            options["gate_id"] = rng.integers(-(2**62), 2**62, shape)

        def compute(inputs):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                y = layer(inputs, mask=mask, training=training, **options)
                losses = list(layer.losses)
                loss = tf.reduce_sum(tf.cast(y, tf.float32)) + sum(losses, 0.0)
            return y, losses, tape.gradient(loss, [inputs, *(v.value for v in layer.trainable_variables)])

        y, losses, gradients = form(compute)(inputs)
        self.assertEqual((tuple(y.shape), y.dtype), ((*shape, width), layer.compute_dtype))
        self.assertLen(losses, int(training and arguments["gate"] not in WITHOUT_LOSSES))
        if max(scales) > 1e10:  # the gradient of a gate's kernel is a product of inputs with outputs
            gradients = []
        for number in (*losses, *(g for g in gradients if g is not None)):
            self.assertTrue(np.all(np.isfinite(tf.cast(number, tf.float64))))

        if training and arguments["expert_dropout"]:
            return  # what was dropped is known to nobody
        noise.drawn.clear()
        routing = layer.route(inputs, mask=mask, training=training, **options)
        counted = np.ones(tokens, bool) if mask is None else mask.ravel()
        reference = Reference(self, layer, tf.cast(x, tf.float64).numpy(), counted)
        if arguments["gate"] in ("strictly_balanced", "expert_choice"):
            reference.check_balanced(routing, training)
        elif arguments["gate"] == "hash":
            reference.check_hash(routing, np.ravel(options["gate_id"]) if options else None)
        elif arguments["gate"] == "bias_balanced":
            reference.check_bias_balanced(routing)
        else:
            reference.check_routing(routing, noise.drawn[0].numpy() if noise.drawn else None, training)
        expected, size = reference.output(routing)
        error = np.abs(tf.reshape(tf.cast(y, tf.float64), [-1, width]).numpy() - expected)
        self.assertLessEqual((error / (size + 1e-30)).max(initial=0), ROUNDING[arguments["dtype"]])
