import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.ops.xla import compiled_by_xla, not_before


class CompiledByXLATest(TestCase):
    def setUp(self):
        super().setUp()
        self.answers = {}

    def ask(self, x, place="here"):
        self.answers[place] = compiled_by_xla()
        return 2 * x

    def assert_all_say(self, expected, *places):
        self.assertEqual(self.answers, dict.fromkeys(places, expected))

    def in_many_places(self, x):
        """Asks wherever code can stand in a function."""

        @tf.function
        def nested(x):
            return self.ask(x, "nested function")

        @tf.custom_gradient
        def custom(x):
            return self.ask(x, "custom gradient, forward"), lambda d: self.ask(d, "custom gradient, backward")

        def body(n, x):
            x = tf.cond(n > 0, lambda: self.ask(x, "branch in a loop"), lambda: self.ask(x, "other branch in a loop"))
            return n + 1, self.ask(x, "loop")

        with tf.GradientTape() as tape:
            tape.watch(x)
            y = self.ask(x, "function")
            y = nested(y)
            y = custom(y)
            y = tf.cond(
                tf.reduce_sum(x) > 0, lambda: nested(custom(self.ask(y, "branch"))), lambda: self.ask(y, "other branch")
            )
            y = tf.while_loop(lambda n, _: n < 2, body, (0, y), maximum_iterations=2)[1]
        return y, tape.gradient(y, x)

    PLACES = (
        *(
            "function",
            "nested function",
            "branch",
            "other branch",
            "loop",
            "branch in a loop",
            "other branch in a loop",
        ),
        *("custom gradient, forward", "custom gradient, backward"),
    )

    def test_eager(self):
        self.ask(tf.ones([2]))
        self.assert_all_say(False, "here")

    def test_plain_function(self):
        tf.function(self.in_many_places)(tf.ones([2]))
        self.assert_all_say(False, *self.PLACES)

    def test_compiled_function(self):
        tf.function(self.in_many_places, jit_compile=True)(tf.ones([2]))
        self.assert_all_say(True, *self.PLACES)

    def test_plain_function_that_calls_a_compiled_one(self):
        @tf.function
        def outer(x):
            inner = tf.function(lambda x: self.ask(x, "inner"), jit_compile=True)
            return self.ask(inner(self.ask(x, "before")), "after")

        outer(tf.ones([2]))
        self.assertEqual(self.answers, {"before": False, "inner": True, "after": False})

    def test_eager_again_after_a_compiled_function(self):
        tf.function(self.ask, jit_compile=True)(tf.ones([2]))
        self.ask(tf.ones([2]), "after")
        self.assertEqual(self.answers, {"here": True, "after": False})

    def test_keras_fit(self):
        test = self

        class Asks(keras.layers.Layer):
            def call(self, inputs):
                return test.ask(inputs, "layer")

        for jit in (True, False):
            model = keras.Sequential([keras.layers.Dense(2), Asks()])
            model.compile("sgd", "mse", jit_compile=jit)
            x = self.normal(4, 3)
            model.fit(x, x[:, :2], verbose=0)
            self.assert_all_say(jit, "layer")
            self.answers.clear()
            model.predict(x, verbose=0)
            self.assert_all_say(jit, "layer")
            self.answers.clear()

    def test_gradient_taken_outside_the_compiled_function(self):
        # The backward pass is compiled too, but traced elsewhere: so it is the forward pass that has to ask.
        @tf.custom_gradient
        def custom(x):
            return self.ask(x, "forward"), lambda d: self.ask(d, "backward")

        def run(x):
            compiled = tf.function(lambda x: custom(x), jit_compile=True)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = compiled(x)
            return tape.gradient(y, x)

        for name, form in {"eager": run, "in a plain function": tf.function(run)}.items():
            with self.subTest(name):
                self.answers.clear()
                form(tf.ones([2]))
                self.assertTrue(self.answers["forward"])


class NotBeforeTest(TestCase):
    def test_changes_no_value(self):
        x, event = self.normal(3, 2), self.normal(4)
        for jit in (None, False, True):
            form = not_before if jit is None else tf.function(not_before, jit_compile=jit)
            self.assertAllEqual(form(tf.constant(x), tf.constant(event), bool(jit)), x)

    def test_waits(self):
        # A plain graph runs operations in any order that their inputs and control inputs allow.
        @tf.function
        def run(x):
            event = tf.exp(x, name="event")
            return not_before(tf.constant(1.0), event, under_xla=False)

        graph = run.get_concrete_function(tf.constant(np.float32(2))).graph
        waiting = [op for op in graph.get_operations() if any(c.type == "Exp" for c in op.control_inputs)]
        self.assertContainsSubset(["Identity"], [op.type for op in waiting])
