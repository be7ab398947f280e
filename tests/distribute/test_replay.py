import keras
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.distribute.replay import data_of_fit, passes_before


class PassesTest(TestCase):
    """The numbers for `epoch` 3; that Keras does so, `test_resume.py` tells for each kind of data."""

    @parameterized.named_parameters(
        ("known_length", 5, None, 1, (6, 0)),
        ("unknown_length", None, None, 1, (3, 0)),
        ("all_of_it", 5, 5, 1, (3, 0)),
        ("endless", -1, 5, 1, (0, 15)),
        ("endless_two_at_once", -1, 5, 2, (0, 18)),
    )
    def test_by_hand(self, length, steps_per_epoch, at_once, expected):
        dataset = tf.data.Dataset.range(9 if length is None else 5)
        dataset = dataset.filter(lambda x: x < 5) if length is None else dataset.repeat(-1 if length < 0 else 1)
        self.assertEqual(passes_before(dataset, 3, steps_per_epoch, at_once), expected)


class DataOfFitTest(TestCase):
    def test_the_innermost_fit_of_the_model(self):
        found = []

        class Outer(keras.Sequential):
            def fit(self, x, steps_per_epoch="not Keras's"):
                options = {"shuffle": False, "steps_per_epoch": 2, "epochs": 4, "initial_epoch": 3}
                return super().fit(x, verbose=0, callbacks=[callback], **options)

        callback = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: found.append(data_of_fit(model)))
        model = Outer([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        dataset = tf.data.Dataset.from_tensors((tf.ones((2, 1)), tf.ones((2, 1)))).repeat()
        model.fit(dataset)
        (data,) = found
        self.assertIs(data.x, dataset)
        self.assertEqual(data[1:], (False, 2, 3))
        self.assertTrue(data.is_dataset)
        with self.assertRaisesRegex(ValueError, "training of model.fit. Received: 'outer"):
            data_of_fit(model)
