"""The methods of Keras models that ask no strategy, made to work on a mesh.

`fit`, `evaluate` and `predict` hand their data to the strategy; others do not, and Keras has no hook for them:

- `train_on_batch`, `test_on_batch` and `predict_on_batch` pass plain arrays, which DTensor does not take.
- `save` and `save_weights` write a file in every process, all to the same place.
- `export` traces the model for batches of any size, and on a mesh all shapes are static.
- `ModelCheckpoint` and `BackupAndRestore` make, copy and delete files in every process, too.

So they are wrapped, once, when the first strategy is made. Models of other strategies are left alone. When a step is
made, all variables must be on the mesh: a plain one, of a metric say, would get the part of one device, unnoticed.
"""

import functools
import itertools
import os
import pathlib
import random
import tempfile
import threading

import keras
import tensorflow as tf
from tensorflow.experimental import dtensor

from tf_moe.distribute.batches import place_all
from tf_moe.distribute.connection import barrier
from tf_moe.distribute.extended import MeshExtended
from tf_moe.mesh.shards import Shards, shards_of


@functools.cache
def wrap_keras_methods() -> None:
    """Wrap the methods of `keras.Model`, once."""
    keras.Model._make_function = _placing(keras.Model._make_function)
    keras.Model.make_predict_function = _placing_predict(keras.Model.make_predict_function)
    keras.Model.save = _written_once(keras.Model.save)
    keras.Model.save_weights = _written_once(keras.Model.save_weights)
    keras.Model.export = _from_a_plain_model(keras.Model.export)
    keras.callbacks.ModelCheckpoint._save_model = _folder_first(keras.callbacks.ModelCheckpoint._save_model)
    keras.callbacks.BackupAndRestore._save_model = _backed_up_by_chief(keras.callbacks.BackupAndRestore._save_model)
    keras.callbacks.BackupAndRestore.on_train_end = _by_chief(keras.callbacks.BackupAndRestore.on_train_end)


def _shards_of_model(model: keras.Model) -> Shards | None:
    """The shards that a model was made on, or None."""
    extended = model.distribute_strategy.extended
    return extended.shards if isinstance(extended, MeshExtended) else None


def _check_on_mesh(model, variables):
    """Raise ValueError for variables that were not made in the scope of the strategy, but in none or another's."""
    mesh = _shards_of_model(model).mesh
    strays = [variable.path for variable in variables if (of := shards_of(variable)) is None or of.mesh != mesh]
    if strays:
        raise ValueError(
            "Make and compile the model, its optimizer and its metrics inside `with strategy.scope()`. Received: "
            f"{model.name!r} with variables made outside: {strays[:3]}."
        )


def _placing(make_function):
    @functools.wraps(make_function)
    def wrapper(model, step_function):
        function, shards = make_function(model, step_function), _shards_of_model(model)
        if shards is None:
            return function
        of_optimizer = model.optimizer.variables if model.optimizer else []
        _check_on_mesh(model, [*model.variables, *model.metrics_variables, *of_optimizer])

        def on_mesh(iterator):
            batches = (place_all(batch, shards) for batch in iterator)
            first = next(batches)  # StopIteration ends an epoch whose length Keras does not know
            return function(itertools.chain([first], batches))

        return on_mesh

    return wrapper


def _placing_predict(make_predict_function):
    @functools.wraps(make_predict_function)
    def wrapper(model, force=False):
        if model.predict_function is not None and not force:
            return
        make_predict_function(model, force)
        function, shards = model.predict_function, _shards_of_model(model)
        if shards is not None:
            _check_on_mesh(model, model.variables)
            model.predict_function = lambda data: function([place_all(batch, shards) for batch in data])

    return wrapper


def _written_once(write):
    """Process 0 writes; the others, whose part in gathering the weights is needed, write to where it is thrown away."""

    @functools.wraps(write)
    def wrapper(model, filepath, *args, **kwargs):
        if _shards_of_model(model) is None or dtensor.num_clients() == 1:
            return write(model, filepath, *args, **kwargs)
        if dtensor.client_id() == 0:
            result = write(model, filepath, *args, **kwargs)
        else:
            with tempfile.TemporaryDirectory() as folder:
                result = write(model, str(pathlib.Path(folder, pathlib.Path(filepath).name)), *args, **kwargs)
        barrier()  # the file is there when any process goes on
        return result

    return wrapper


def _from_a_plain_model(export):
    """Export a copy of the model that is on one device: the artefact is to run anywhere, with batches of any size."""

    @functools.wraps(export)
    def wrapper(model, filepath, *args, **kwargs):
        if _shards_of_model(model) is None:
            export(model, filepath, *args, **kwargs)
            return
        weights, failures = model.get_weights(), []

        def build_and_export():
            # The config is the model's own: the code and the classes in it are here already.
            keras.config.enable_unsafe_deserialization()
            try:
                with keras.saving.custom_object_scope(_classes_of(model)):
                    copy = type(model).from_config(model.get_config())
                    if not copy.built:
                        copy.build_from_config(model.get_build_config())
                copy.set_weights(weights)
                export(copy, filepath, *args, **kwargs)
            except BaseException as error:
                failures.append(error)

        if dtensor.client_id() == 0:
            # Seeds that Keras draws for the copy no other process draws, and what is made later must be the same.
            state = random.getstate()
            # In a thread of its own, where the scope of the strategy does not reach, nor what Keras is told there.
            thread = threading.Thread(target=build_and_export)
            try:
                thread.start()
                thread.join()
            finally:
                random.setstate(state)
        barrier()  # after a failure, too: the others are waiting
        if failures:
            raise failures[0]

    return wrapper


def _classes_of(model):
    """The classes of a model's layers that are not those of Keras, by the names that configs have for them."""
    classes = {type(layer) for layer in model._flatten_layers()}
    return {keras.saving.get_registered_name(c): c for c in classes if not c.__module__.startswith("keras.")}


def _folder_first(save_model):
    """Make the folder before the callback looks for it: of processes that find none at once, all but one would fail."""

    @functools.wraps(save_model)
    def wrapper(callback, epoch, batch, logs):
        if _shards_of_model(callback.model) is not None:
            folder = os.path.dirname(callback._get_file_path(epoch, batch, logs))
            if folder:
                tf.io.gfile.makedirs(folder)  # which may be there
        save_model(callback, epoch, batch, logs)

    return wrapper


def _backed_up_by_chief(save_model):
    """Process 0 makes the folder and the files; the others do their part in gathering the weights."""

    @functools.wraps(save_model)
    def wrapper(callback):
        if _shards_of_model(callback.model) is None or dtensor.client_id() == 0:
            save_model(callback)
        else:
            callback.model.save_weights(callback._weights_path)

    return wrapper


def _by_chief(method):
    """Run by process 0, while the others wait."""

    @functools.wraps(method)
    def wrapper(callback, *args, **kwargs):
        if _shards_of_model(callback.model) is None:
            method(callback, *args, **kwargs)
            return
        try:
            if dtensor.client_id() == 0:
                method(callback, *args, **kwargs)
        finally:
            barrier()  # after a failure, too: the others are waiting

    return wrapper
