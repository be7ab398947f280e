import keras
import tensorflow as tf

from tests.base import TestCase
from tests.mesh.helpers import Program, strategy_on
from tf_moe.distribute.supported import check_supported


class SupportedTest(TestCase):
    def test_keras_lstm(self):
        with strategy_on(2).scope():
            model = keras.Sequential([keras.Input((6, 4)), keras.layers.LSTM(4, name="their_lstm")])
            model.compile("sgd", "mse")
        with self.assertRaisesRegex(ValueError, r"'[^']*their_lstm[^']*'\. Use tf_moe.layers.LSTM"):
            model.fit(self.normal(8, 6, 4), self.normal(8, 4), verbose=0)

    def test_operations(self):
        for function, message in {
            lambda x: tf.random.normal([2]): "RandomStandardNormal.*keras.random.SeedGenerator",
            lambda x: tf.map_fn(tf.sin, x): "TensorList",
            lambda x: tf.where(x > 0): "Where.*static shape",
            lambda x: tf.unique(x)[0]: "Unique.*static shape",
            lambda x: keras.ops.flip(x): "Reverse.*go_backwards=True",
            lambda x: tf.searchsorted(x, x): "LowerBound",
            lambda x: tf.py_function(lambda y: y, [x], tf.float32): "EagerPyFunc",
        }.items():
            graph = tf.function(function).get_concrete_function(tf.TensorSpec([4])).graph
            with self.assertRaisesRegex(ValueError, message):
                check_supported(graph)

    def test_operations_of_functions(self):
        """DTensor splits what loops, branches and functions that are called do, too."""

        def noisy(x):
            with tf.name_scope("mesh_program_7"), tf.name_scope("layer"):
                return x + tf.random.normal([4])

        @tf.function
        def called(x):
            return tf.cond(x[0] > 0, lambda: noisy(x), lambda: x)

        for function in (
            lambda x: tf.while_loop(lambda n, _: n < 3, lambda n, y: (n + 1, noisy(y)), (0, x)),
            lambda x: tf.cond(x[0] > 0, lambda: noisy(x), lambda: x),
            lambda x: called(x),
        ):
            graph = tf.function(function).get_concrete_function(tf.TensorSpec([4])).graph
            with self.assertRaisesRegex(ValueError, "RandomStandardNormal, made by '[^']*layer/.*SeedGenerator"):
                check_supported(graph)

    def test_a_branch_that_need_not_be_taken(self):
        """Optimizers of Keras have one for sparse gradients, which DTensor lets pass."""

        def compacted(x):
            return tf.cond(x[0] > 0, lambda: tf.reduce_sum(tf.unique(x)[0]), lambda: x[0])

        check_supported(tf.function(compacted).get_concrete_function(tf.TensorSpec([4])).graph)

    def test_a_loop_on_the_mesh(self):
        """Told of by `run`, and not by DTensor when the program is compiled."""

        def noisy(x):
            return tf.while_loop(lambda n, _: n < 3, lambda n, y: (n + 1, y + tf.random.normal([4, 3])), (0, x))[1]

        with self.assertRaisesRegex(ValueError, "cannot split random numbers with a state"):
            Program(strategy_on(2), noisy)(self.normal(4, 3))

    def test_the_scope_is_named(self):
        def function(x):
            with tf.name_scope("mesh_program_7"), tf.name_scope("model"), tf.name_scope("layer"):
                return tf.where(x > 0)

        graph = tf.function(function).get_concrete_function(tf.TensorSpec([4])).graph
        with self.assertRaisesRegex(ValueError, "made by 'model/layer'"):
            check_supported(graph)

    def test_everything_else_passes(self):
        def function(x):
            x = tf.where(x > 0, x, tf.random.stateless_normal([4], [1, 2]))
            return tf.while_loop(lambda n, _: n < 3, lambda n, y: (n + 1, tf.sort(y) + x), (0, x))

        check_supported(tf.function(function).get_concrete_function(tf.TensorSpec([4])).graph)
