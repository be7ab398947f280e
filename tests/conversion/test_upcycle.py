import pathlib

import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe import gates
from tf_moe.conversion import upcycle, upcycle_model
from tf_moe.layers import SparseMoE
from tf_moe.models import Perplexity

Dense = keras.layers.Dense
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
FUNCTIONS = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "softmax": lambda z: np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    None: lambda z: z,
}


class UpcycleTest(TestCase):
    """D width 6, H hidden 10."""

    def dense(self, activation="relu", output_activation=None, biases=(True, True), width=6, **kwargs):
        """A pair of built layers, all weights random."""
        hidden = Dense(10, activation, use_bias=biases[0], name="hidden", **kwargs)
        output = Dense(width, output_activation, use_bias=biases[1], name="output", **kwargs)
        hidden.build((None, width))
        output.build((None, 10))
        for layer in (hidden, output):
            layer.set_weights([self.normal(*w.shape) for w in layer.weights])
        return hidden, output

    def expected(self, hidden, output, x):
        """By hand in float64."""
        for layer in (hidden, output):
            kernel, *bias = (w.astype("float64") for w in layer.get_weights())
            x = FUNCTIONS[layer.activation.__name__ if layer.activation.__name__ != "linear" else None](
                x @ kernel + (bias[0] if bias else 0)
            )
        return x

    def test_gives_what_the_dense_layers_give(self):
        x = self.normal(3, 5, 6)
        for kwargs, experts, k in (
            ({}, 8, 2),
            ({"activation": "tanh", "output_activation": "sigmoid", "biases": (False, False)}, 4, 4),
            ({"activation": "softmax", "biases": (False, True)}, (2, 3), (2, 2)),
            ({"output_activation": "softmax", "biases": (True, False)}, 1, 1),
        ):
            with self.subTest(str(kwargs)):
                pair = self.dense(**kwargs)
                moe = upcycle(*pair, experts, k)
                self.assertEqual((moe.name, moe.num_experts, moe.k, moe.expert_hidden), ("hidden_moe", experts, k, 10))
                self.assertEqual(moe.use_bias, any(kwargs.get("biases", (True, True))))
                expected = self.expected(*pair, x.astype("float64"))
                for training in (False, True):
                    self.assertAllClose(moe(x, training=training), expected, **CLOSE)
        with_shared = upcycle(*pair, experts, k, shared_expert_hidden=4)
        self.assertAllClose(with_shared(x), expected, **CLOSE)
        mask = self.rng.random((3, 5)) < 0.5
        self.assertAllClose(moe(x, mask=mask), np.where(mask[..., None], expected, 0), **CLOSE)

    def test_every_expert_is_a_copy_and_the_gate_is_random(self):
        hidden, output = self.dense()
        moe = upcycle(hidden, output, 4, 2, importance_weight=0.3, recompute=True)
        self.assertEqual((moe.importance_weight, moe.recompute), (0.3, True))
        for stack, weight in (
            (moe.experts.hidden_kernel, hidden.kernel),
            (moe.experts.hidden_bias, hidden.bias),
            (moe.experts.output_kernel, output.kernel),
            (moe.experts.output_bias, output.bias),
        ):
            self.assertAllEqual(stack, np.stack([weight.numpy()] * 4))
        self.assertGreater(np.std(moe.gate.kernel), 0.1)
        self.assertAllEqual(moe.gate.noise_kernel, np.zeros((6, 4)))
        zeros = upcycle(hidden, output, 4, 2, gate=gates.NoisyTopK(4, 2))
        self.assertAllEqual(zeros.gate.kernel, np.zeros((6, 4)))

    def test_noise(self):
        pair = self.dense(width=40)
        moe, again, other = (upcycle(*pair, 16, 2, noise=0.1, seed=seed) for seed in (3, 3, 4))
        for name, dense in (("hidden_kernel", pair[0].kernel), ("output_kernel", pair[1].kernel)):
            kernel = getattr(moe.experts, name)
            self.assertAllEqual(kernel, getattr(again.experts, name))
            self.assertNotAllClose(kernel, getattr(other.experts, name))
            noise = np.asarray(kernel - dense)
            # 6400 numbers: five standard deviations.
            self.assertAllClose(noise.std() / np.std(dense), 0.1, rtol=0.05)
            self.assertAllClose(np.corrcoef(noise.reshape(16, -1)), np.eye(16), atol=0.3)
        self.assertAllEqual(moe.experts.output_bias, np.stack([pair[1].bias.numpy()] * 16))
        self.assertAllEqual(moe.gate.kernel, again.gate.kernel)

    def test_experts_part_in_training(self):
        pair = self.dense()
        moe = upcycle(*pair, 4, 2)
        optimizer, x = keras.optimizers.SGD(0.05), self.normal(64, 6)
        for _ in range(3):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((moe(x, training=True) - x) ** 2)
            optimizer.apply(tape.gradient(loss, moe.trainable_weights), moe.trainable_weights)
        kernel = moe.experts.hidden_kernel.numpy()
        for e in range(1, 4):
            self.assertGreater(np.abs(kernel[e] - kernel[0]).max(), 1e-5)
            self.assertGreater(np.abs(kernel[e] - pair[0].kernel).max(), 1e-5)

    def test_half_precision_and_what_the_dense_layers_have(self):
        kwargs = {"kernel_regularizer": keras.regularizers.L2(0.1), "kernel_constraint": keras.constraints.MaxNorm(2.0)}
        pair = self.dense(dtype="mixed_bfloat16", **kwargs)
        moe = upcycle(*pair, 4, 2)
        self.assertEqual((moe.dtype_policy.name, moe.experts.hidden_kernel.dtype), ("mixed_bfloat16", "float32"))
        self.assertEqual((moe.kernel_regularizer.l2, moe.kernel_constraint.max_value), (0.1, 2.0))
        self.assertIsNone(upcycle(*pair, 4, 2, kernel_regularizer=None).kernel_regularizer)
        x = self.normal(5, 6)
        dense = pair[1](pair[0](x))
        self.assertAllClose(tf.cast(moe(x), tf.float32), tf.cast(dense, tf.float32), rtol=0.02, atol=0.1)

    def test_what_cannot_be_converted(self):
        hidden, output = self.dense()
        wide, _ = self.dense(width=7)
        quantized, _ = self.dense()
        quantized.quantize("int8")
        lora, _ = self.dense()
        lora.enable_lora(2)
        _, regularized = self.dense(bias_regularizer="l2")
        _, other_kernel = self.dense(kernel_regularizer="l2")
        _, half = self.dense(dtype="bfloat16")
        for first, second, kwargs, pattern in (
            (wide, output, {}, r"\(7, 10\).*\(10, 6\)"),
            (hidden, keras.layers.EinsumDense("ab,bc->ac", 6), {}, "output must be a keras.layers.Dense.*EinsumDense"),
            (Dense(10, name="new"), output, {}, "hidden must be built.*'new'"),
            (quantized, output, {}, "quantization to int8"),
            (lora, output, {}, "LoRA"),
            (hidden, regularized, {}, "no bias_regularizer.*Convert a copy"),
            (hidden, other_kernel, {}, "the same kernel_regularizer.*Pass kernel_regularizer="),
            (hidden, half, {}, "one dtype policy. Received: float32 and bfloat16"),
            (hidden, output, {"k": 1}, "k must be 2 or more.*Received: k=1"),
            (hidden, output, {"num_experts": (2, 4), "k": (2, 1)}, r"Received: k=\(2, 1\)"),
            (hidden, output, {"gate": "strictly_balanced"}, "gate must be .*Received: gate='strictly_balanced'"),
            (hidden, output, {"gate": gates.StrictlyBalanced(4, 2)}, "sum to one.*Received: gate=<StrictlyBalanced"),
            (hidden, output, {"gate": gates.NoisyTopK(5, 2)}, "num_experts=5"),
            (hidden, output, {"gate": gates.NoisyTopK(4, 2, normalize="all")}, "sum to one.*normalize='all'"),
            (hidden, output, {"noise": -0.1}, "noise=-0.1"),
            (hidden, output, {"seed": 0.5}, "seed=0.5"),
            (hidden, output, {"k": 5}, "k=5"),
        ):
            with self.subTest(pattern), self.assertRaisesRegex(ValueError, pattern):
                upcycle(first, second, **{"num_experts": 4, "k": 2, **kwargs})


class UpcycleModelTest(TestCase):
    def functional(self):
        """Ids -> logits, with a pair of its own and one in a model inside, masks and a residual connection."""
        ids = keras.Input((None,), dtype="int32", name="ids")
        x = keras.layers.Embedding(12, 6, mask_zero=True)(ids)
        x = keras.layers.Add()([x, Dense(6, name="down")(Dense(10, "gelu", name="up")(x))])
        block = keras.Sequential([Dense(8, "tanh", name="a"), Dense(6, "relu", name="b")], name="block")
        block.supports_masking = True
        x = keras.layers.LayerNormalization()(block(x))
        model = keras.Model(ids, Dense(12, name="logits")(x), name="dense_model")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, weighted_metrics=[Perplexity()], run_eagerly=True)
        for weight in model.weights:
            weight.assign(self.normal(*weight.shape))
        return model

    def test_functional(self):
        model, ids = self.functional(), self.rng.integers(1, 12, (3, 5))
        ids[:, 3:] = 0
        before = [w.numpy() for w in model.weights]
        new = upcycle_model(model, [("up", "down"), (model.get_layer("block").layers)], 4, 2, seed=5)
        self.assertEqual(new.name, "dense_model")
        self.assertEqual([type(layer) for layer in new.get_layer("block").layers], [SparseMoE])
        self.assertNotAllClose(new.get_layer("up_moe").gate.kernel, new.get_layer("block").layers[0].gate.kernel)
        real = ids > 0
        self.assertAllClose(new(ids)[real], model(ids)[real], rtol=1e-4, atol=1e-4)
        self.assertAllClose(new.evaluate(ids, ids, verbose=0)[:2], model.evaluate(ids, ids, verbose=0), rtol=1e-4)
        new.train_on_batch(ids, ids)
        for weight, value in zip(model.weights, before, strict=True):
            self.assertAllEqual(weight, value)

    def test_sequential(self):
        model = keras.Sequential(
            [keras.Input((4,), name="x"), Dense(3, name="a"), Dense(5, name="b"), Dense(3, name="c")]
        )
        x = self.normal(7, 4)
        new = upcycle_model(model, [("b", "c")], (2, 2), (2, 2))
        self.assertEqual([layer.name for layer in new.layers], ["a", "b_moe"])
        self.assertAllClose(new(x), model(x), **CLOSE)
        self.assertFalse(new.compiled)
        path = pathlib.Path(self.get_temp_dir(), "model.keras")
        new.save(path)
        self.assertAllEqual(keras.models.load_model(path)(x[:2]), new(x[:2]))
        alone = upcycle_model(keras.Sequential([keras.Input((3,)), *model.layers[1:]]), [("b", "c")], 2, 2)
        self.assertAllClose(alone(x[:, :3]), model.layers[2](model.layers[1](x[:, :3])), **CLOSE)

    def test_pairs_that_do_not_follow_one_another(self):
        def functional(build):
            x = keras.Input((3,))
            layers = {name: Dense(3, name=name) for name in "abc"}
            return keras.Model(x, build(x, **layers))

        def sequential(*layers):
            return keras.Sequential([keras.Input((3,)), *layers])

        a, b = Dense(3, name="a"), Dense(3, name="b")
        for model, pattern in (
            (sequential(a, keras.layers.Dropout(0.1, name="drop"), b), "'a' returns must go to 'b'.*goes to 'drop'"),
            (sequential(b, a), "'b' must be called on what 'a' returns"),
            (sequential(b, keras.layers.ReLU(), a), "'b' must be called on what 'a' returns"),
            (functional(lambda x, a, b, c: b(c(a(x)))), "'a' returns must go to 'b'.*goes to 'c'"),
            (functional(lambda x, a, b, c: b(a(x)) + a(x)), "'a' returns must go to 'b' and nowhere else.*'add"),
            (
                functional(lambda x, a, b, c: [b(a(x)), a.output]),
                "'a' returns must go to 'b' and nowhere else.*'functional",
            ),
            (
                functional(lambda x, a, b, c: c(a(x)) + b(x)),
                "'a' returns must go|'b' must be called on what 'a' returns",
            ),
        ):
            with self.subTest(pattern), self.assertRaisesRegex(ValueError, pattern):
                upcycle_model(model, [("a", "b")], 4, 2)

    def test_wrong_models_and_pairs(self):
        model = keras.Sequential([keras.Input((3,)), Dense(3, name="a"), Dense(3, name="b")])
        other = Dense(3, name="other")
        other.build((None, 3))

        class Subclass(keras.Model):
            pass

        subclass = Subclass()
        subclass.build((None, 3))
        gate = gates.NoisyTopK(4, 2)
        for given, pairs, kwargs, error, pattern in (
            (model, [("a", "x")], {}, ValueError, r"Received: 'x', which is the name of 0 of \['a', 'b'\]"),
            (model, [("a", other)], {}, ValueError, "one of the model's layers.*Received: 'other'"),
            (model, [], {}, ValueError, "one pair .*Received: "),
            (model, [("a", "a")], {}, ValueError, "one pair .*Received: "),
            (model, ["a", "b"], {}, ValueError, r"one pair .*Received: \[\('a',\), \('b',\)\]"),
            (model, [("a", "b"), ("b", "a")], {"gate": gate}, ValueError, "each layer in one pair alone"),
            (subclass, [(model.layers)], {}, ValueError, "Only Sequential and functional models.*Subclass"),
            (keras.Sequential([other]), [("a", "b")], {}, ValueError, "must be built"),
            (other, [("a", "b")], {}, TypeError, "model must be a"),
        ):
            with self.subTest(pattern), self.assertRaisesRegex(error, pattern):
                upcycle_model(given, pairs, 4, 2, **kwargs)
