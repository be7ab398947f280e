import pathlib
import warnings

import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.mesh.helpers import specs_of, strategy_on
from tf_moe.layers import SparseMoE
from tf_moe.optimizers import FactoredAdam, optimizer_for


def make_model(**arguments):
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(4), SparseMoE(4, 8, k=2, seed=1), keras.layers.Dense(3)]
    )
    model.compile(optimizer_for(FactoredAdam(0.01), keras.optimizers.SGD(0.1)), "mse", **arguments)
    return model


class OptimizerForTest(TestCase):
    def data(self):
        return self.normal(32, 6), self.normal(32, 3)

    def test_each_part_has_its_own(self):
        model = make_model()
        twins = [keras.models.clone_model(model) for _ in range(2)]
        for twin, optimizer in zip(twins, (FactoredAdam(0.01), keras.optimizers.SGD(0.1)), strict=True):
            twin.set_weights(model.get_weights())
            twin.compile(optimizer, "mse")
        x, y = self.data()
        for each in (model, *twins):
            each.train_on_batch(x, y)
        of_experts = 0
        for ours, factored, sgd in zip(model.weights, *(twin.weights for twin in twins), strict=True):
            is_experts = "/experts/" in ours.path
            of_experts += is_experts
            self.assertAllClose(ours, factored if is_experts else sgd, msg=ours.path)
        self.assertEqual(of_experts, 2)
        slots = [tuple(v.shape) for v in model.optimizer.variables if len(v.shape)]
        self.assertEqual(slots, [(4, 4), (4, 8), (4, 8), (4, 4)])

    def test_all_weights_of_experts_are_theirs(self):
        """Biases, and those of Keras layers; not those of a layer whose name ends like theirs."""
        own = SparseMoE(2, k=1, expert=lambda: keras.layers.Dense(4))
        layers = [SparseMoE(2, 3, k=1, use_bias=True), own, keras.layers.Dense(4, name="no_experts")]
        model = keras.Sequential([keras.Input((4,)), *layers])
        weights = model.trainable_variables
        of_experts = {w.path for layer in layers[:2] for w in layer.experts.weights}
        self.assertLen(of_experts, 4 + 4)
        before = [w.numpy() for w in weights]
        optimizer = optimizer_for(keras.optimizers.SGD(1.0), keras.optimizers.SGD(0.0))
        optimizer.apply([tf.ones(w.shape) for w in weights], weights)
        for weight, old in zip(weights, before, strict=True):
            self.assertEqual(bool(np.any(weight != old)), weight.path in of_experts, weight.path)

    def test_callbacks_of_learning_rates_set_both(self):
        model = keras.Sequential([keras.Input((6,)), SparseMoE(4, 8, k=2), keras.layers.Dense(3)])
        model.compile(optimizer_for("adam", "sgd"), "mse", run_eagerly=True)
        x, y = self.data()
        model.fit(x, y, verbose=0, callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch: 0.5)])
        parts = model.optimizer.experts, model.optimizer.others
        self.assertEqual([type(part) for part in parts], [keras.optimizers.Adam, keras.optimizers.SGD])
        self.assertAllEqual([part.learning_rate for part in parts], [0.5, 0.5])

    def test_no_weight_for_the_experts_is_told(self):
        """Keras layers that were built before the mixture have no "experts" in their paths."""

        def built():
            return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])

        def model_of(expert):
            model = keras.Sequential([keras.Input((4,)), SparseMoE(4, k=2, expert=expert)])
            return model, optimizer_for(FactoredAdam(0.01), keras.optimizers.SGD(0.1))

        model, optimizer = model_of(built)
        with self.assertWarnsRegex(UserWarning, f"Received: {len(model.trainable_variables)} weights.*not built"):
            optimizer.build(model.trainable_variables)
        self.assertFalse(optimizer.experts.built)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.build(model.trainable_variables)  # told once
            model, optimizer = model_of(lambda: keras.layers.Dense(4))
            optimizer.build(model.trainable_variables)
        self.assertTrue(optimizer.experts.built)

    def test_scales_the_loss_by_the_factor_of_both(self):
        scaled = [FactoredAdam(0.01, loss_scale_factor=8.0), keras.optimizers.SGD(0.1, loss_scale_factor=8.0)]
        model, plain = make_model(), make_model()
        plain.set_weights(model.get_weights())
        model.compile(optimizer_for(*scaled), "mse")
        config = keras.saving.serialize_keras_object(model.optimizer)
        for optimizer in (model.optimizer, keras.saving.deserialize_keras_object(config)):
            self.assertEqual(optimizer.scale_loss(1.0), 8.0)
            self.assertEqual([part.loss_scale_factor for part in (optimizer.experts, optimizer.others)], [8.0, 8.0])
        x, y = self.data()
        for each in (model, plain):
            each.layers[1].gate.seed_generator.state.assign([1, 0])
            each.train_on_batch(x, y)
        for ours, expected in zip(model.weights, plain.weights, strict=True):
            self.assertAllClose(ours, expected, rtol=1e-4, atol=1e-5)

    def test_parts_that_scale_the_loss_differently(self):
        for factors in ((8.0, 2.0), (8.0, None), (None, 2.0)):
            experts, others = (keras.optimizers.SGD(loss_scale_factor=factor) for factor in factors)
            with self.assertRaisesRegex(ValueError, f"Received: {factors[0]} for the experts, {factors[1]} for"):
                optimizer_for(experts, others)
            self.assertEqual((experts.loss_scale_factor, others.loss_scale_factor), factors)

    def test_is_saved(self):
        model, path = make_model(), pathlib.Path(self.get_temp_dir(), "model.keras")
        x, y = self.data()
        model.fit(x, y, verbose=0)
        model.save(path)
        again = keras.models.load_model(path)
        for each in (model, again):
            each.layers[1].gate.seed_generator.state.assign([1, 0])
        for _ in range(2):
            self.assertAllClose(again.train_on_batch(x, y), model.train_on_batch(x, y))
        for ours, expected in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
            self.assertAllClose(ours, expected)

    def test_is_in_checkpoints(self):
        """Of Keras's optimizer of several a checkpoint holds no slots."""
        model, again, path = make_model(), make_model(), self.get_temp_dir() + "/checkpoint"
        for each in (model, again):
            each.optimizer.build(each.trainable_variables)
        for variable in model.optimizer.variables:
            variable.assign(tf.cast(self.normal(*variable.shape) * 10, variable.dtype))
        tf.train.Checkpoint(optimizer=model.optimizer).write(path)
        tf.train.Checkpoint(optimizer=again.optimizer).read(path).assert_consumed()
        for ours, expected in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
            self.assertAllEqual(ours, expected, msg=ours.path)
        self.assertIsInstance(again.optimizer.experts, FactoredAdam)
        self.assertIsInstance(again.optimizer.others, keras.optimizers.SGD)

    def test_mixed_float16(self):
        """Keras wraps it in loss scaling."""
        keras.config.set_dtype_policy("mixed_float16")
        try:
            model = make_model()
        finally:
            keras.config.set_dtype_policy("float32")
        self.assertIsInstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        before = model.get_weights()
        model.fit(*self.data(), epochs=3, verbose=0)
        after = model.get_weights()
        self.assertTrue(all(np.all(np.isfinite(w)) for w in after))
        self.assertNotAllClose(after[0], before[0])

    def test_on_a_mesh(self):
        x, y = self.data()
        one = make_model()
        with strategy_on(2).scope():
            many = make_model()
        many.set_weights(one.get_weights())
        for _ in range(3):
            self.assertAllClose(many.train_on_batch(x, y), one.train_on_batch(x, y), rtol=1e-4)
        for ours, expected in zip(many.optimizer.variables, one.optimizer.variables, strict=True):
            self.assertAllClose(ours, expected, rtol=1e-3, atol=1e-6)
            if "experts" in ours.path:
                self.assertEqual(specs_of(ours.value)[0], "expert")
