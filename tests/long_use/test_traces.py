"""How often a model is traced: once for all shapes that are left open, once for each that is not, never for loads."""

import itertools

import keras
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.layers import LSTM, SampledSoftmax, SampledSoftmaxLoss, SparseMoE
from tf_moe.models import language_model
from tf_moe.optimizers import FactoredAdam

WORDS = 11
SHAPES = [(2, 3), (1, 5), (4, 1), (3, 3), (2, 4)]
LAYERS = {
    "noisy_top_k": lambda: SparseMoE(6, 3, k=2),
    "capacity": lambda: SparseMoE(6, 3, k=2, capacity_factor=1.0, drop_by="weight"),
    "hierarchical": lambda: SparseMoE((3, 2), 3, k=(2, 1)),
    "strictly_balanced": lambda: SparseMoE(6, 3, k=2, gate="strictly_balanced"),
    "recompute": lambda: SparseMoE(6, 3, k=2, recompute=True),
    "expert": lambda: SparseMoE(2, k=1, expert=lambda: keras.layers.Dense(4)),
    "lstm": lambda: LSTM(4, return_sequences=True),
    "lstm_projection": lambda: LSTM(6, projection=4, return_sequences=True, go_backwards=True),
}


class Counts(keras.layers.Layer):
    """Passes its input on, and counts how often Python comes by."""

    calls = 0
    supports_masking = True

    def call(self, inputs):
        self.calls += 1
        return inputs

    def compute_output_shape(self, input_shape):
        return input_shape


class LayersTest(TestCase):
    @parameterized.named_parameters((name, make) for name, make in LAYERS.items())
    def test_open_and_static_shapes(self, make):
        layer = make()
        layer.build((None, None, 4))

        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(x, training=True)) + sum(layer.losses)
            return tape.gradient(loss, [v.value for v in layer.trainable_variables], unconnected_gradients="zero")

        of_any_shape = tf.function(step, input_signature=[tf.TensorSpec([None, None, 4])])
        of_each_shape = tf.function(step)
        for _ in range(2):
            for shape in [*SHAPES, (0, 3), (2, 0)]:
                of_any_shape(tf.constant(self.normal(*shape, 4)))
            of_each_shape(tf.constant(self.normal(*SHAPES[0], 4)))
        self.assertEqual(of_any_shape.experimental_get_tracing_count(), 1)
        self.assertEqual(of_each_shape.experimental_get_tracing_count(), 1)


class KerasTest(TestCase):
    def ids(self, shape):
        return self.rng.integers(0, WORDS, shape).astype("int32")

    def batches(self):
        """One batch of each shape; the dataset says nothing of shapes."""

        def generate():
            for shape in SHAPES:
                ids = self.ids(shape)
                yield ids, ids

        spec = tf.TensorSpec([None, None], tf.int32)
        batches = tf.data.Dataset.from_generator(generate, output_signature=(spec, spec))
        return batches.apply(tf.data.experimental.assert_cardinality(len(SHAPES)))

    def test_fit_evaluate_and_predict_trace_no_more_than_twice(self):
        """Twice: where the first trace makes variables, the optimizer's, or Keras hands on the first batch's shape."""
        counts = Counts()
        model = language_model(WORDS, [counts, SparseMoE((2, 2), 3, k=(1, 1))], width=4)
        model.compile(FactoredAdam(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        batches, traced = self.batches().repeat(2), counts.calls
        for method, options in ((model.fit, {"shuffle": False}), (model.evaluate, {}), (model.predict, {})):
            method(batches, verbose=0, **options)
            self.assertLessEqual(counts.calls - traced, 2)
            traced = counts.calls
            method(batches, verbose=0, **options)
            self.assertEqual(counts.calls, traced)

    def test_arrays_of_many_shapes_trace_twice(self):
        """For the first shape, and for the second one, when Keras leaves open what differed."""
        counts = Counts()
        model = keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                keras.layers.Embedding(WORDS, 4, mask_zero=True),
                SparseMoE(4, 3, k=2, gate="strictly_balanced"),
                counts,
                SampledSoftmax(WORDS, 5),
            ]
        )
        model.compile("adam", SampledSoftmaxLoss())
        for method, arguments in ((model.train_on_batch, 2), (model.predict_on_batch, 1)):
            traced = counts.calls
            for shape in itertools.chain(SHAPES, SHAPES):
                method(*[self.ids(shape)] * arguments)
            self.assertLessEqual(counts.calls - traced, 3)
