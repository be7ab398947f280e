"""Loads what `store.py` wrote, and holds it against what the models answered. Knows nothing but TensorFlow and tf_moe.

As a program it does so with every folder of a given one: the fresh process of `test_fresh_process.py`.
"""

import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

import tf_moe  # noqa: F401 (Keras finds its classes)

# Other graphs, machines and releases round elsewhere, and half precision more coarsely.
CLOSE, HALF = 1e-5, 0.02


def load_all(folder: pathlib.Path) -> keras.Model:
    """Load the three forms that a model trains on from; raise AssertionError where one is not what was saved.

    The first is asked for answers, the others must have the same state as it.

    Returns:
        The model, as it was saved.
    """
    model = keras.models.load_model(folder / "model.keras")
    check(folder, model, "model.keras")
    first = state_of(model)
    blank(model)
    model.load_weights(folder / "model.weights.h5")
    np.testing.assert_equal(state_of(model), first, f"{folder} model.weights.h5")
    blank(model)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    checkpoint.read(str(folder / "checkpoint")).assert_consumed()
    np.testing.assert_equal(state_of(model), first, f"{folder} checkpoint")
    return model


def check(folder, model, form):
    """Assert that a model answers what was saved; where its state is saved too, by this machine, all of it exactly."""
    same_machine = (folder / "state.npz").exists()
    if same_machine:
        assert_same(state_of(model), folder / "state.npz", form, exact=True)
    assert_same(outputs_of(model(data(folder)[0])), folder / "outputs.npz", form, exact=same_machine)


def check_saved_model(folder: pathlib.Path, form: str) -> None:
    """Assert that a SavedModel gives the answers that were saved, and takes another batch and another time."""
    serve = tf.saved_model.load(folder / form).signatures["serving_default"]
    (name,) = serve.structured_input_signature[1]
    ids = tf.constant(data(folder)[0])
    assert_same(outputs_of(serve(**{name: ids})), folder / "outputs.npz", form)
    for value in serve(**{name: ids[:1, :2]}).values():
        assert value.shape[:2] == (1, 2), f"{folder} {form}: {value.shape}"


def check_next_step(folder: pathlib.Path, model: keras.Model) -> None:
    """Assert that a step more leads where it led the model that was saved."""
    repeat_noise(model)
    train(model, *data(folder))
    assert_same(state_of(model), folder / "next.npz", "next step")


def assert_same(found, file, what, exact=False):
    expected = np.load(file)
    assert set(found) == set(expected), f"{file} {what}: {sorted(found)} instead of {sorted(expected)}"
    for name in found:
        close = 0 if exact else HALF if "float16" in name else CLOSE
        np.testing.assert_allclose(found[name], expected[name], close, close, err_msg=f"{file} {what} {name}")


def data(folder):
    """Ids and targets."""
    targets = dict(np.load(folder / "data.npz"))
    ids = targets.pop("ids")
    return ids, targets.get("output", targets)


def train(model, ids, targets) -> None:
    """A step, which is not traced: that would take longer than the step."""
    model.run_eagerly = True
    model.train_on_batch(ids, targets)


def repeat_noise(model) -> None:
    """Start all generators of random numbers anew: their states are in no file."""
    for variable in model.variables:
        if "seed_generator" in variable.path:
            variable.assign([1, 2])


def blank(model) -> None:
    """Set all that a file holds to zero."""
    for variable in saved_variables(model):
        variable.assign(tf.zeros_like(variable))


def saved_variables(model) -> list:
    """The weights, and what the optimizer keeps."""
    return [*model.weights, *model.optimizer.variables]


def state_of(model) -> dict:
    """The values of the variables by names that are the same in every process."""
    return {f"{n}_{variable.dtype}": as_numpy(variable) for n, variable in enumerate(saved_variables(model))}


def outputs_of(outputs) -> dict:
    """The outputs of a model by name; called "output" where there is one, for which forms of files have other names."""
    if isinstance(outputs, dict) and len(outputs) > 1:
        return {name: as_numpy(value) for name, value in outputs.items()}
    (output,) = outputs.values() if isinstance(outputs, dict) else [outputs]
    return {"output": as_numpy(output)}


def as_numpy(value):
    """An array of a type that NumPy can write."""
    value = tf.convert_to_tensor(value)
    return (tf.cast(value, tf.float32) if value.dtype == tf.bfloat16 else value).numpy()


if __name__ == "__main__":
    for each in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        check_next_step(each, load_all(each))
        for saved_model in each.glob("*/saved_model.pb"):
            check_saved_model(each, saved_model.parent.name)
        print(f"loaded {each.name}", flush=True)
