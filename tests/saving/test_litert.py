import pathlib

import keras
import tensorflow as tf

from tests.base import TestCase
from tests.saving.loading import outputs_of
from tests.saving.models import VOCABULARY, WIDTH, branches, distinct_ids, moe
from tf_moe.layers import LSTM
from tf_moe.models import language_model

BUILTIN = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}


class LiteRTTest(TestCase):
    """Models as LiteRT's own operations, without those of TensorFlow."""

    def convert(self, model, **arguments):
        path = pathlib.Path(self.get_temp_dir(), "model.tflite")
        model.export(path, format="litert", verbose=False, target_spec=BUILTIN, **arguments)
        # When TensorFlow has its interpreter no more, take the one of ai_edge_litert.
        with self.assertWarnsRegex(UserWarning, "ai_edge_litert"):
            return tf.lite.Interpreter(str(path)).get_signature_runner("serving_default")

    def assert_same_answers(self, run, model, ids):
        (name,) = run.get_input_details()
        found, expected = outputs_of(run(**{name: ids})), outputs_of(model(ids))
        self.assertEqual(set(found), set(expected))
        for name, value in expected.items():
            self.assertAllClose(found[name], value, rtol=1e-5, atol=3e-5, msg=name)

    def test_one_level_with_a_capacity_for_any_batch_and_time(self):
        kinds = {
            "noisy": {},
            "one": {"k": 1, "use_bias": True, "activation": "gelu", "recompute": True},
            "balanced": {"gate": "strictly_balanced", "output_activation": "sigmoid"},
            "expert_choice": {"gate": "expert_choice"},
            "sinkhorn": {"gate": "sinkhorn"},
            "biased": {"gate": "bias_balanced"},
            "hash": {"gate": "hash"},
            "by_weight": {"drop_by": "weight", "capacity_factor": 0.7},
            "layers": {"expert": lambda: keras.layers.Dense(WIDTH, "tanh")},
            "untrained": {},
        }
        model = branches("sgd", **{name: moe(name, **{"capacity_factor": 1.5, **kind}) for name, kind in kinds.items()})
        for weight in model.weights:
            if "untrained" not in weight.path:  # where all logits are equal, and the choice is by what a token is
                weight.assign(self.normal(*weight.shape) / 2)
        run = self.convert(model)
        for shape in ((6, 5), (1, 1), (3, 8)):
            self.assert_same_answers(run, model, distinct_ids(self.rng, *shape))

    def test_language_model_of_static_shape(self):
        layers = [moe("moe", capacity_factor=1.5), LSTM(6, projection=WIDTH, return_sequences=True, dropout=0.1)]
        model = language_model(VOCABULARY, layers, width=WIDTH)
        for weight in model.weights:
            weight.assign(self.normal(*weight.shape) / 2)
        run = self.convert(model, input_signature=[tf.TensorSpec((2, 6), tf.int32)])
        self.assert_same_answers(run, model, distinct_ids(self.rng, 2, 6))

    def test_dropless_is_not_converted(self):
        """When it is, the documents are to say so."""
        with self.assertRaisesRegex(Exception, "TensorListReserve"):
            self.convert(branches("sgd", noisy=moe("noisy")))
