"""Sparsely-Gated Mixture-of-Experts for TensorFlow and Keras 3 (Shazeer et al., 2017)."""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"tf_moe runs on Keras's TensorFlow backend only. Received: KERAS_BACKEND={keras.backend.backend()!r}. "
        "Set KERAS_BACKEND=tensorflow in the environment (or in ~/.keras/keras.json) before Keras is imported."
    )

from tf_moe import (
    analysis,
    conversion,
    dispatch,
    distribute,
    experts,
    gates,
    initializers,
    layers,
    losses,
    models,
    optimizers,
    text,
)
from tf_moe._version import __version__

__all__ = [
    "__version__",
    "analysis",
    "conversion",
    "dispatch",
    "distribute",
    "experts",
    "gates",
    "initializers",
    "layers",
    "losses",
    "models",
    "optimizers",
    "text",
]
