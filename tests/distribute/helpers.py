"""What tests of whole models on a mesh share."""

import keras
import numpy as np

from tf_moe.layers import LSTM, SparseMoE

VOCABULARY = 13
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def language_model(arguments=None, recurrent=True, **more):
    """Embedding with a mask, LSTM, MoE, logits, for any batch and time."""
    arguments = {"num_experts": 8, "k": 2, "expert_hidden": 6, "seed": 1, **(arguments or {}), **more}
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(VOCABULARY, 4, mask_zero=True),
            *([LSTM(4, return_sequences=True)] if recurrent else []),
            SparseMoE(name="moe", **arguments),
            keras.layers.Dense(VOCABULARY),
        ]
    )


def compiled(model, optimizer=None, **arguments):
    """The model, compiled for next words; of Adam with an epsilon for which rounding errors make no full steps."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(0.01, epsilon=1e-5), loss, **arguments)
    return model


def moe_of(model):
    """The SparseMoE of a language model."""
    return model.get_layer("moe")


def same_weights(rng, *models):
    """Give all models the same weights, whose gates are not those of an untrained model, for which tokens are equal."""
    weights = models[0].get_weights()
    for n, weight in enumerate(models[0].weights):
        if "gate" in weight.path:
            weights[n] = rng.standard_normal(weight.shape).astype("float32")
    for model in models:
        model.set_weights(weights)


def histories_close(test, ours, expected, **close):
    """Assert that all metrics of two histories are the same."""
    test.assertEqual(set(ours), set(expected))
    for name, values in expected.items():
        test.assertAllClose(np.array(ours[name]), np.array(values), msg=name, **{**CLOSE, **close})
