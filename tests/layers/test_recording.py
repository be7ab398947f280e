import keras
import tensorflow as tf

from tests.base import TestCase
from tf_moe.layers import SparseMoE, record_routings


class RecordRoutingsTest(TestCase):
    def test_every_call_in_any_kind_of_model(self):
        first, second = SparseMoE(4, 3, k=2, name="first"), SparseMoE((2, 2), 3, k=(1, 2), name="second")

        class Twice(keras.Model):
            def call(self, x):
                return first(first(x))

        inner = keras.Sequential([keras.Input((None, 6)), Twice(), second])
        model = keras.Sequential([keras.Input((None, 6)), inner])
        x = self.normal(2, 3, 6)

        @tf.function
        def look(x):
            with record_routings() as routings:
                y = model(x)
            return y, [routing for _, routing in routings]

        for call in (look, look.python_function):
            y, (one, two, three) = call(x)
            again = first(x)
            expected = first.route(x), first.route(again), second.route(first(again))
            for ours, routing in zip((one, two, three), expected, strict=True):
                self.assertAllEqual(ours.expert_index, routing.expert_index)
                self.assertAllClose(ours.combine_weights, routing.combine_weights)
                self.assertAllClose(ours.load, routing.load)
            self.assertAllClose(y, model(x))

    def test_nothing_outside(self):
        layer, x = SparseMoE(4, 3, k=2), self.normal(5, 6)
        with record_routings() as outer:
            layer(x)
            with record_routings() as inner:
                layer(x)
        layer(x)
        self.assertLen(outer, 1)
        self.assertLen(inner, 1)
        self.assertIs(outer[0][0], layer)
