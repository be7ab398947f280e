import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe import gates
from tf_moe.conversion.rebuild import layers_of, moe_layers, rebuild
from tf_moe.layers import SparseMoE

Dense = keras.layers.Dense


class RebuildTest(TestCase):
    def model(self):
        """Two mixtures with one gate, one in a model inside; a layer called twice; operations without a layer."""
        gate = gates.NoisyTopK(4, 2, "glorot_uniform")
        inner_in = keras.Input((None, 6))
        inner = keras.Model(inner_in, SparseMoE(4, 5, k=2, gate=gate, name="inside")(inner_in), name="inner")
        x, twice = keras.Input((None, 6), name="x"), Dense(6, "tanh", name="twice")
        y = inner(twice(twice(x))) + keras.ops.relu(SparseMoE(4, 5, k=2, gate=gate, name="outside")(x))
        model = keras.Model({"x": x}, {"y": keras.layers.LSTM(3, return_sequences=True)(y)}, name="model")
        for weight in model.weights:
            weight.assign(self.normal(*weight.shape))
        return model

    def test_a_copy_of_all(self):
        model, x = self.model(), {"x": self.normal(2, 3, 6)}
        copy = rebuild(model)
        self.assertAllEqual(copy(x)["y"], model(x)["y"])
        self.assertEqual([layer.name for layer in layers_of(copy)], [layer.name for layer in layers_of(model)])
        self.assertEqual(copy.name, model.name)
        self.assertFalse({id(w) for w in copy.weights} & {id(w) for w in model.weights})
        self.assertLen(copy.weights, len(model.weights))
        first, second = moe_layers(copy)
        self.assertIs(first.gate, second.gate)
        before = model(x)["y"].numpy()
        for weight in copy.weights:
            weight.assign(0 * weight)
        self.assertAllEqual(model(x)["y"], before)

    def test_what_mixtures_share(self):
        """A gate that one of them made by its name, and experts."""
        experts = [Dense(4) for _ in range(3)]
        first = SparseMoE(3, k=2, expert=experts)
        second = SparseMoE(3, k=2, expert=experts, gate=first.gate)
        model = keras.Sequential([keras.Input((4,)), first, second])
        copy, x = rebuild(model), self.normal(5, 4)
        self.assertAllEqual(copy(x), model(x))
        self.assertLen(copy.weights, len(model.weights))
        first, second = moe_layers(copy)
        self.assertIs(first.gate, second.gate)
        self.assertIs(first.experts.layers[1], second.experts.layers[1])

    def test_what_preprocessing_has_beside_weights(self):
        scale = keras.layers.Normalization()
        scale.adapt(5 + 3 * self.normal(50, 4))
        model, x = keras.Sequential([keras.Input((4,)), scale, Dense(2)]), 5 + 3 * self.normal(3, 4)
        self.assertAllEqual(rebuild(model)(x), model(x))
        words = keras.layers.StringLookup()
        words.adapt(["a", "b", "a"])
        model = keras.Sequential([keras.Input((None,), dtype="string"), words, keras.layers.Embedding(3, 2)])
        x = tf.constant([["b", "a", "c"]])
        self.assertAllEqual(rebuild(model)(x), model(x))

    def test_replaced(self):
        model, x = self.model(), self.normal(2, 3, 6)
        inside = model.get_layer("inner").get_layer("inside")
        new = SparseMoE(3, 7, k=1, name="other")
        new.build((None, 6))
        new.experts.output_kernel.assign(np.zeros((3, 7, 6)))
        copy = rebuild(model, {inside: new})
        self.assertIs(copy.get_layer("inner").get_layer("other"), new)
        outside = keras.ops.relu(model.get_layer("outside")(x))
        self.assertAllClose(copy({"x": x})["y"], model.layers[-1](outside), rtol=1e-5, atol=1e-5)

    def test_a_sequential_model(self):
        inner = keras.Sequential([keras.Input((4,)), Dense(4)], name="inner", trainable=False)
        inner.supports_masking = True
        model = keras.Sequential([inner, keras.layers.Dropout(0.2), Dense(2)])
        x = self.normal(5, 4)
        expected = model(x)  # which builds it
        model.compile(keras.optimizers.SGD(0.25), "mse")
        copy = rebuild(model)
        self.assertAllEqual(copy(x), expected)
        self.assertEqual((copy.compiled, float(copy.optimizer.learning_rate), copy.loss), (True, 0.25, "mse"))
        self.assertIsNot(copy.optimizer, model.optimizer)
        clone = copy.get_layer("inner")
        self.assertEqual((clone.supports_masking, clone.trainable), (True, False))

    def test_a_class_of_ones_own(self):
        class Own(keras.Sequential):
            pass

        class WithLayers(keras.Sequential):
            def __init__(self, trainable=True, name=None):
                super().__init__([Dense(3)], trainable=trainable, name=name)

        class WithArguments(keras.Sequential):
            def __init__(self, units):
                super().__init__([Dense(units)])

        model, x = Own([keras.Input((4,)), Dense(3)], trainable=False), self.normal(5, 4)
        copy = rebuild(model)
        self.assertIs(type(copy), Own)
        self.assertEqual((copy.name, copy.trainable), (model.name, False))
        self.assertAllEqual(copy(x), model(x))
        for model in (WithLayers(), WithArguments(3)):
            model(x)
            with self.assertRaisesRegex(ValueError, "Sequential's arguments, and no layers.*With"):
                rebuild(model)

    def test_mixtures_of_a_model(self):
        self.assertEqual([layer.name for layer in moe_layers(self.model())], ["outside", "inside"])
        model = keras.Sequential([keras.Input((2, 4)), keras.layers.TimeDistributed(SparseMoE(2, 3, k=1), name="wrap")])
        with self.assertRaisesRegex(ValueError, r"not inside of a layer of another kind.*\['wrap'\]"):
            moe_layers(model)
