import keras
import numpy as np

from tests.base import TestCase
from tf_moe.experts.constraints import ConstrainEach


class ConstrainEachTest(TestCase):
    def test_max_norm_by_hand(self):
        # Columns of each expert's kernel have norms 5, 1 and 2, 0; those above 2 are brought to 2.
        w = np.array([[[3.0, 1.0], [4.0, 0.0]], [[2.0, 0.0], [0.0, 0.0]]], "float32")
        expected = [[[1.2, 1.0], [1.6, 0.0]], [[2.0, 0.0], [0.0, 0.0]]]
        self.assertAllClose(ConstrainEach(keras.constraints.MaxNorm(2.0, axis=0))(w), expected)

    def test_is_the_constraint_on_each_slice(self):
        w = 3 * self.normal(4, 5, 6)
        for constraint in (
            keras.constraints.MaxNorm(1.0),
            keras.constraints.MaxNorm(1.0, axis=1),
            keras.constraints.UnitNorm(axis=0),
            keras.constraints.NonNeg(),
            keras.constraints.MinMaxNorm(0.5, 1.0, rate=0.5, axis=[0, 1]),
        ):
            expected = np.stack([constraint(kernel) for kernel in w])
            self.assertNotAllClose(expected, w)
            self.assertAllClose(ConstrainEach(constraint)(w), expected)

    def test_on_a_variable(self):
        # With the constraint on the stack itself, axis 0 would be the experts.
        variable = keras.Variable(3 * self.normal(4, 5, 6))
        norms = np.linalg.norm(ConstrainEach("unit_norm")(variable), axis=1)
        self.assertAllClose(norms, np.ones((4, 6)))

    def test_config(self):
        constraint = ConstrainEach(keras.constraints.MaxNorm(0.7, axis=1))
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(constraint))
        self.assertIsInstance(again, ConstrainEach)
        w = 3 * self.normal(4, 5, 6)
        self.assertAllClose(again(w), constraint(w))
        self.assertAllClose(np.linalg.norm(again(w), axis=2).max(), 0.7, rtol=1e-4)
