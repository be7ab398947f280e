import contextlib

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.experts import FeedForward
from tf_moe.optimizers import FactoredAdam

# The most by which a number is rounded, as a part of it.
ROUNDING = {"bfloat16": 2**-8, "float16": 2**-11}


def adam_by_hand(weight, gradients, rate, beta_1, beta_2, epsilon, factored):
    """In float64, one matrix at a time."""
    weight = weight.astype("float64")
    if factored and weight.ndim > 2:
        slices = [
            adam_by_hand(w, [g[n] for g in gradients], rate, beta_1, beta_2, epsilon, True)
            for n, w in enumerate(weight)
        ]
        return np.stack(slices)
    row, column, full, momentum = 0.0, 0.0, 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        g = gradient.astype("float64")
        momentum = beta_1 * momentum + (1 - beta_1) * g
        row = beta_2 * row + (1 - beta_2) * (g**2).mean(-1)
        column = beta_2 * column + (1 - beta_2) * (g**2).mean(0)
        full = beta_2 * full + (1 - beta_2) * g**2
        v = np.outer(row, column) / row.mean() if factored else full
        root = np.sqrt(v / (1 - beta_2**t))
        weight = weight - rate * momentum / (1 - beta_1**t) / (root + epsilon)
    return weight


class FactoredAdamTest(TestCase):
    def train(self, optimizer, weights, gradients):
        variables = [keras.Variable(w) for w in weights]
        optimizer.build(variables)
        for step in gradients:
            optimizer.apply([tf.constant(g) for g in step], variables)
        return variables

    @parameterized.parameters((0.0, 0.999, 1e-7), (0.9, 0.99, 1e-7), (0.5, 0.0, 0.1))
    def test_against_a_slow_one(self, beta_1, beta_2, epsilon):
        shapes = [(3, 4, 5), (4, 5), (2, 3, 4, 5), (5,), ()]
        weights = [self.normal(*shape) for shape in shapes]
        gradients = [[self.normal(*shape) for shape in shapes] for _ in range(4)]
        variables = self.train(FactoredAdam(0.1, beta_1, beta_2, epsilon), weights, gradients)
        for n, (variable, weight) in enumerate(zip(variables, weights, strict=True)):
            per_step = [step[n] for step in gradients]
            if len(shapes[n]) == 4:
                weight, per_step = weight.reshape(6, 4, 5), [g.reshape(6, 4, 5) for g in per_step]
            factored = len(shapes[n]) > 1
            expected = adam_by_hand(
                np.atleast_1d(weight), [np.atleast_1d(g) for g in per_step], 0.1, beta_1, beta_2, epsilon, factored
            )
            self.assertAllClose(tf.reshape(variable, [-1]), expected.reshape(-1), rtol=1e-4, atol=1e-5)

    def test_equals_adam_where_the_square_has_rank_one(self):
        gradient = np.outer(self.normal(4), self.normal(6)).astype("float32")
        ours, theirs = (
            self.train(optimizer, [np.zeros((4, 6), "float32")], [[gradient]] * 5)[0]
            for optimizer in (FactoredAdam(0.01, 0.9, epsilon=1e-12), keras.optimizers.Adam(0.01, epsilon=1e-12))
        )
        self.assertAllClose(ours, theirs, rtol=1e-4)

    def count(self, optimizer, bank):
        optimizer.build(bank.trainable_variables)
        return sum(int(np.prod(v.shape)) for v in optimizer.variables if len(v.shape))

    def test_what_it_keeps(self):
        """Row and column averages for each expert and nothing else; Adam keeps twice the weights."""
        bank = FeedForward(16, hidden=12)
        bank.build((None, 8))
        self.assertEqual(self.count(FactoredAdam(), bank), 2 * 16 * (8 + 12))
        self.assertEqual(self.count(FactoredAdam(beta_1=0.9), bank), 2 * 16 * (8 + 12) + 2 * 16 * 8 * 12)
        self.assertEqual(self.count(keras.optimizers.Adam(), bank), 4 * 16 * 8 * 12)

    def test_biases_of_experts_are_vectors(self):
        bank = FeedForward(4, hidden=12, use_bias=True)
        bank.build((None, 8))
        optimizer = FactoredAdam()
        optimizer.build(bank.trainable_variables)
        shapes = [tuple(v.shape) for v in optimizer.variables if "bias" in v.path]
        self.assertEqual(shapes, [(4, 12), (4, 8)])

    def test_variables_of_tensorflow(self):
        """As Keras's optimizers take them, and with gradients that are more exact than the weights."""
        weights, gradients = [self.normal(2, 3, 4), self.normal(5)], [[self.normal(2, 3, 4), self.normal(5)]] * 3
        expected = self.train(FactoredAdam(0.1, beta_1=0.9), weights, gradients)
        variables, optimizer = [tf.Variable(w) for w in weights], FactoredAdam(0.1, beta_1=0.9)
        for step in gradients:
            optimizer.apply([tf.constant(g) for g in step], variables)
        for ours, want in zip(variables, expected, strict=True):
            self.assertAllClose(ours, want)
        (half,) = (keras.Variable(w, dtype="bfloat16") for w in weights[:1])
        optimizer = FactoredAdam(0.1)
        optimizer.apply([tf.constant(gradients[0][0])], [half])
        rows = np.mean(gradients[0][0] ** 2, -1)
        (found,) = (v for v in optimizer.variables if "row_velocity" in v.path)
        self.assertAllClose(found, (1 - optimizer.beta_2) * rows, rtol=1e-5)

    def test_no_gradient_changes_nothing(self):
        """An expert that got no token: zero over zero is no step."""
        weight = self.normal(2, 3, 4)
        gradient = self.normal(2, 3, 4)
        gradient[1] = 0
        (variable,) = self.train(FactoredAdam(0.1), [weight], [[gradient]] * 3)
        self.assertAllEqual(variable[1], weight[1])
        self.assertNotAllClose(variable[0], weight[0])

    def test_sparse_gradients(self):
        table = self.normal(6, 4)
        rows, index = self.normal(3, 4), [4, 0, 4]
        dense = np.zeros((6, 4), "float32")
        np.add.at(dense, index, rows)
        variables = [keras.Variable(table) for _ in range(2)]
        for variable, gradient in zip(variables, (tf.IndexedSlices(rows, index, (6, 4)), dense), strict=True):
            optimizer = FactoredAdam(0.1)
            optimizer.build([variable])
            optimizer.apply([gradient], [variable])
        self.assertAllClose(*variables)

    def test_options_of_keras(self):
        """Decay, clipping, averages and accumulation are Keras's: the same as for its Adam, on a rank-one gradient."""
        gradient = np.outer(self.normal(4), self.normal(6)).astype("float32")
        for options in (
            {"weight_decay": 0.1},
            {"clipnorm": 0.1},
            {"global_clipnorm": 0.1},
            {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
            {"gradient_accumulation_steps": 2},
            {"loss_scale_factor": 8.0},
            {"clipvalue": 0.1},
        ):
            with self.subTest(**options):
                weight = self.normal(4, 6)
                if "clipvalue" in options:  # which leaves a matrix of signs one of rank one
                    gradient = np.sign(gradient)
                ours, theirs = (
                    self.train(optimizer, [weight], [[gradient]] * 4)[0]
                    for optimizer in (
                        FactoredAdam(0.01, 0.9, epsilon=1e-12, **options),
                        keras.optimizers.Adam(0.01, epsilon=1e-12, **options),
                    )
                )
                self.assertAllClose(ours, theirs, rtol=1e-4, atol=1e-4)
                self.assertNotAllClose(ours, weight, atol=1e-3)

    @parameterized.product(dtype=("bfloat16", "float16"), beta_1=(0.0, 0.9), xla=(False, True))
    def test_half_precision_follows_float32(self, dtype, beta_1, xla):
        """A beta_2 of 0.999 is 1 in bfloat16, and an epsilon of 1e-7 nothing to float16."""
        steps, shapes = 5, [(3, 4, 5), (4, 5), (5,), ()]
        weights = [tf.cast(self.normal(*shape), dtype) for shape in shapes]
        gradients = [[tf.cast(0.01 * self.normal(*shape), dtype) for shape in shapes] for _ in range(steps)]
        results = []
        for each in (dtype, "float32"):
            variables = [keras.Variable(tf.cast(w, each), dtype=each) for w in weights]
            optimizer = FactoredAdam(0.1, beta_1)
            optimizer.build(variables)
            self.assertEqual({v.dtype for v in optimizer.variables[1:]}, {"float32"})
            # The float32 one, which it is compared with, need not be traced.
            apply = optimizer.apply
            if each == dtype:
                apply = tf.function(optimizer.apply, jit_compile=xla, autograph=False)
            for step in gradients:
                apply([tf.cast(g, each) for g in step])
            results.append(variables)
        for half, whole, weight in zip(*results, weights, strict=True):
            self.assertEqual(half.dtype, dtype)
            largest = float(tf.reduce_max(tf.abs(tf.cast(weight, "float32")))) + 0.1 * steps
            self.assertAllClose(tf.cast(half, "float32"), whole, rtol=0, atol=steps * ROUNDING[dtype] * largest)

    def test_config(self):
        optimizer = FactoredAdam(0.01, 0.5, 0.9, 1e-3, weight_decay=0.1, clipnorm=2.0, use_ema=True, name="mine")
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
        self.assertIsInstance(again, FactoredAdam)
        self.assertEqual(again.get_config(), optimizer.get_config())
        self.assertEqual((again.beta_1, again.beta_2, again.epsilon), (0.5, 0.9, 1e-3))

    def test_defaults(self):
        """Those of the documentation: the paper's, and Adam's."""
        optimizer = FactoredAdam()
        self.assertAllClose(optimizer.learning_rate, 0.001)
        self.assertEqual((optimizer.beta_1, optimizer.beta_2, optimizer.epsilon), (0.0, 0.999, 1e-7))

    def test_what_cannot_be(self):
        with self.assertRaisesRegex(ValueError, "under 1. Received: beta_1=1.0"):
            FactoredAdam(beta_1=1.0)

    def test_fits_under_xla(self):
        x, y = self.normal(16, 4), self.normal(16, 3)
        models = []
        for jit in (False, True):
            models.append(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
            models[-1].compile(FactoredAdam(0.05), "mse", jit_compile=jit)
            models[-1].set_weights(models[0].get_weights())
        for model in models:
            model.fit(x, y, epochs=3, shuffle=False, verbose=0)
        self.assertAllClose(models[1].get_weights()[0], models[0].get_weights()[0], rtol=1e-4, atol=1e-5)

    def test_under_a_mirrored_strategy(self):
        """The weights' copies are no plain variables there."""
        x, y = self.normal(16, 4), self.normal(16, 3)
        # Not by collectives: those of several such strategies in one process are told for one another.
        strategy = tf.distribute.MirroredStrategy(
            ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
        )
        models = []
        for scope in (contextlib.nullcontext(), strategy.scope()):
            with scope:
                models.append(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
                models[-1].compile(FactoredAdam(0.05), "mse")
            models[-1].set_weights(models[0].get_weights())
        for model in models:
            model.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(16), epochs=3, shuffle=False, verbose=0)
        self.assertAllClose(models[1].get_weights()[0], models[0].get_weights()[0], rtol=1e-4, atol=1e-5)
