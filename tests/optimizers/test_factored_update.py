import re

import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.optimizers.factored_update import State, update, update_in_place


def address(variable):
    return np.asarray(variable.read_value()).__array_interface__["data"][0]


class UpdateInPlaceTest(TestCase):
    def make(self, momentum=False):
        values = State(
            self.normal(6, 8, 16),
            (np.abs(self.normal(6, 8)), np.abs(self.normal(6, 16))),
            (self.normal(6, 8, 16),) if momentum else (),
        )
        scalars = [tf.constant(x) for x in (0.1, 3.0, 0.9 if momentum else 0.0, 0.99, 1e-7)]
        return values, tf.constant(self.normal(6, 8, 16)), scalars

    def test_is_the_update(self):
        for momentum in (False, True):
            values, gradient, scalars = self.make(momentum)
            variables = tf.nest.map_structure(tf.Variable, values)
            tf.function(update_in_place, jit_compile=True, autograph=False)(variables, gradient, scalars)
            expected = update(tf.nest.map_structure(tf.constant, values), gradient, scalars)
            for variable, value in zip(tf.nest.flatten(variables), tf.nest.flatten(expected), strict=True):
                self.assertAllClose(variable, value, rtol=1e-5, atol=1e-6)

    def test_the_weight_stays_where_it_is(self):
        values, gradient, scalars = self.make()
        # Memory of TensorFlow's own: of a constant it may share the array's.
        variables = tf.nest.map_structure(lambda x: tf.Variable(2 * tf.constant(x)), values)
        compiled = tf.function(update_in_place, jit_compile=True, autograph=False)
        before = address(variables.weight)
        compiled(variables, gradient, scalars)
        self.assertEqual(address(variables.weight), before)
        self.assertNotAllClose(variables.weight, 2 * values.weight)

    def test_nothing_of_the_size_of_a_stack_is_made(self):
        values, gradient, scalars = self.make()
        variables = tf.nest.map_structure(tf.Variable, values)
        compiled = tf.function(update_in_place, jit_compile=True, autograph=False)
        program = compiled.experimental_get_compiler_ir(variables, gradient, scalars)(stage="optimized_hlo")
        made = set(re.findall(r"= f32\[6,8,16\]\S* ([\w-]+)\(", program))
        self.assertIn("parameter", made)
        views = {"parameter", "get-tuple-element", "bitcast", "dynamic-update-slice", "fusion"}
        self.assertEmpty(made - views, program)
