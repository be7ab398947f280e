"""Saves the models in every way, with what they answer: for a test, or as the files of a release.

python -m tests.saving.store    writes tests/saving/release_<major>_<minor>/, an archive for each model
"""

import pathlib
import shutil
import tempfile

import keras
import numpy as np
import tensorflow as tf

import tf_moe
from tests.saving.loading import outputs_of, train
from tests.saving.models import MODELS, inputs_and_targets


def store(folder: pathlib.Path, name: str, seed: int) -> keras.Model:
    """Train a model for one step and write it into a folder, with inputs, targets and answers.

    Returns:
        The model.
    """
    keras.utils.set_random_seed(seed)
    folder.mkdir(parents=True)
    model = MODELS[name]()
    ids, targets = inputs_and_targets(model, np.random.default_rng(seed))
    train(model, ids, targets)
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(folder / "checkpoint")
    targets = targets if isinstance(targets, dict) else {"output": targets}
    np.savez(folder / "data.npz", ids=ids, **targets)
    np.savez(folder / "outputs.npz", **outputs_of(model(ids)))
    return model


def store_release(folder: pathlib.Path) -> None:
    """Write the files that later releases must load; raise FileExistsError where a release has its own already."""
    folder.mkdir()
    for name in MODELS:
        with tempfile.TemporaryDirectory() as temporary:
            written = pathlib.Path(temporary, name)
            store(written, name, seed=0)
            shutil.make_archive(str(folder / name), "xztar", written)


if __name__ == "__main__":
    release = "_".join(tf_moe.__version__.split(".")[:2])
    store_release(pathlib.Path(__file__).parent / f"release_{release}")
