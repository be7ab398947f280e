r"""Sparsely-Gated Mixture-of-Experts for TensorFlow and Keras 3 (Shazeer et al., 2017).

`tf_moe.layers.SparseMoE` is the layer. `tf_moe.models` has the paper's networks, `tf_moe.text` their data and
`tf_moe.optimizers` their optimizers. `tf_moe.analysis` shows how experts are used, `tf_moe.conversion` turns a trained
dense model into a mixture or makes a mixture smaller, and `tf_moe.distribute` splits experts over devices and resumes
interrupted training. The layer is made of `tf_moe.gates`, `tf_moe.dispatch`, `tf_moe.experts`, `tf_moe.losses` and
`tf_moe.initializers`, which can also be used on their own.

The examples of public names are tested. Each runs as written, in an empty directory, after these lines:

```python
import pathlib

import keras
import numpy as np
import tensorflow as tf

import tf_moe

# A small model of sentences, and 16 sentences of 9 words out of 50.
keras.utils.set_random_seed(1)
model = keras.Sequential(
    [
        keras.Input((None,), dtype="int32"),
        keras.layers.Embedding(50, 8, mask_zero=True),
        tf_moe.layers.SparseMoE(num_experts=8, expert_hidden=16, k=2, name="moe"),
        keras.layers.Dense(50),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss)
tokens = np.random.randint(3, 50, (16, 9))
dataset = tf.data.Dataset.from_tensor_slices((tokens[:, :-1], tokens[:, 1:])).batch(8)

# Sentences in English and French, in files "pairs/train.en", "pairs/train.fr" and so on.
english = ["two men are in a boat", "a cat sat on the mat", "the boat is on the sea"]
french = ["deux hommes sont dans un bateau", "un chat est sur le tapis", "le bateau est sur la mer"]
pathlib.Path("pairs").mkdir()
for part in ("train", "val", "test"):
    pathlib.Path(f"pairs/{part}.en").write_text("\n".join(english))
    pathlib.Path(f"pairs/{part}.fr").write_text("\n".join(french))
corpus = tf_moe.text.Corpus(*(tf_moe.text.Text([f"pairs/{part}.en"]) for part in ("train", "val", "test")))
vocabulary = tf_moe.text.build_vocabulary(corpus.train, size=None)
```
"""

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
