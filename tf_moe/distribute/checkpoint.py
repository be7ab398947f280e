"""Checkpoints of which each process writes and reads just its own part.

They are TensorFlow's checkpoints of partitioned variables: `tf.train.load_checkpoint` reads them, and a slice of a
variable can be read whatever slices it was written in. So what N devices saved, M devices restore, or one.
"""

import contextlib
import os
from collections.abc import Sequence

import keras
import tensorflow as tf
from tensorflow.experimental import dtensor

from tf_moe import checks
from tf_moe.distribute.connection import barrier
from tf_moe.distribute.variables import local_slices


def save_sharded(path: str | os.PathLike, model: keras.Model, others: Sequence[keras.Variable] = ()) -> None:
    """Save all state of a model: weights, the optimizer's state, and the states of random number generators.

    No process ever holds more than its part of the experts. In a cluster every process calls it, with the same path on
    storage that all share; the checkpoint appears under its name when it is complete.

    Args:
        path: Prefix of the files that are written, `path.index` and `path.data-...`.
        model: A built model, on a mesh or on one device.
        others: Further variables to save.

    Raises:
        ValueError: If the model is not built.
        TypeError: If it is no model.
        FileNotFoundError: If the first process does not see what another has written.

    Example:

    >>> tf_moe.distribute.save_sharded("checkpoints/step-1000", model)
    """
    checks.built_model(model)
    path, process = os.fspath(path), dtensor.client_id()
    # A part has its number, so that none is empty and one that the first process does not see is missed.
    names, specs, values = [f"parts/{process}"], [""], [tf.constant(process)]
    for name, variable in _named_variables(model, others):
        for spec, value in _pieces(variable):
            names.append(name)
            specs.append(spec)
            values.append(value)
    parts = [f"{path}_parts/{n}" for n in range(dtensor.num_clients())]
    tf.io.gfile.makedirs(f"{path}_parts")
    with tf.device("CPU:0"):
        tf.raw_ops.SaveV2(prefix=parts[process], tensor_names=names, shape_and_slices=specs, tensors=values)
        barrier()  # all parts are there
        if process == 0:
            if missing := [part for part in parts if not tf.io.gfile.exists(f"{part}.index")]:
                raise FileNotFoundError(
                    f"Every process writes a part of a checkpoint, on storage that all share. Received: {path!r}, of "
                    f"which the first process does not see {missing}. Pass a path on a disk that is the same for all."
                )
            tf.raw_ops.MergeV2Checkpoints(
                checkpoint_prefixes=parts, destination_prefix=path, delete_old_dirs=True, allow_missing_files=False
            )
    barrier()  # the checkpoint is there when any process goes on


def restore_sharded(path: str | os.PathLike, model: keras.Model, others: Sequence[keras.Variable] = ()) -> None:
    """Restore what `save_sharded` saved, on any number of devices and processes.

    Args:
        path: As it was saved.
        model: A built model of the same structure, on a mesh or on one device; its optimizer is built if need be.
        others: As they were saved.

    Raises:
        ValueError: If the checkpoint is of another model (a variable is missing, or has another shape or dtype), in
            which case the model is left as it was; if it is damaged, in which case some variables may have been
            restored already; or if the model is not built.
        FileNotFoundError: If there is no checkpoint of this name.
        TypeError: If it is no model.

    Example:

    >>> model.optimizer.build(model.trainable_variables)
    >>> tf_moe.distribute.save_sharded("checkpoints/step-1000", model)
    >>> tf_moe.distribute.restore_sharded("checkpoints/step-1000", model)
    """
    checks.built_model(model)
    path = os.fspath(path)
    if not tf.io.gfile.exists(f"{path}.index"):
        raise FileNotFoundError(f"No checkpoint {path!r}: {path}.index is not there. Pass the path it was saved under.")
    if getattr(model, "optimizer", None) is not None and not model.optimizer.built:
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
    with _reading(path):
        reader = tf.train.load_checkpoint(path)
    saved, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    named = _named_variables(model, others)
    parts = {name.split("/")[0] for name, _ in named}
    if unknown := sorted(name for name in saved.keys() - dict(named).keys() if name.split("/")[0] in parts):
        raise ValueError(
            f"The checkpoint is of another model. Received: {path!r}, where {unknown[0]!r} has shape "
            f"{saved[unknown[0]]}, for a model without it."
        )
    for name, variable in named:  # all of them before the first is assigned, so that another model's changes nothing
        shape, dtype = list(variable.shape), variable.dtype
        if name not in saved:
            fault = f"there is no {name!r}, for a model where it has shape {shape}"
        elif saved[name] != shape:
            fault = f"{name!r} has shape {saved[name]}, for a variable of shape {shape}"
        elif dtypes[name] != dtype:
            fault = f"{name!r} has dtype {dtypes[name].name}, for a variable of dtype {dtype.name}"
        else:
            continue
        raise ValueError(f"The checkpoint is of another model. Received: {path!r}, where {fault}.")
    for name, variable in named:
        _restore(path, name, variable)


def _named_variables(model: keras.Model, others: Sequence[keras.Variable] = ()) -> list[tuple[str, tf.Variable]]:
    """All variables of a model and its optimizer, with names that do not depend on how many models were made before."""
    # Generators of random numbers are no weights, and Keras saves them nowhere.
    named = [(f"model/{n}/{v.name}", v.value) for n, v in enumerate(model.variables)]
    if getattr(model, "optimizer", None) is not None:  # the names of its variables have that of the model in them
        named += [(f"optimizer/{n}", v.value) for n, v in enumerate(model.optimizer.variables)]
    return named + [(f"others/{n}", v.value) for n, v in enumerate(others)]


def _pieces(variable):
    """What this process has to write of a variable: slices and their values."""
    if not isinstance(variable, dtensor.DVariable):
        return [("", variable.read_value())]
    values = dtensor.unpack(variable.read_value())
    slices = local_slices(variable.shape, variable.layout)
    return [(_spec(variable.shape, s), v) for s, v in zip(slices, values, strict=True) if s.is_first_copy]


def _restore(path, name, variable):
    if not isinstance(variable, dtensor.DVariable):
        variable.assign(_read(path, name, "", variable.dtype))
        return
    read = {}
    slices = local_slices(variable.shape, variable.layout)
    for part in slices:
        if part.begin not in read:
            read[part.begin] = _read(path, name, _spec(variable.shape, part), variable.dtype)
    variable.assign(dtensor.pack([read[part.begin] for part in slices], variable.layout))


def _read(path, name, spec, dtype):
    with _reading(path), tf.device("CPU:0"):
        return tf.raw_ops.RestoreV2(prefix=path, tensor_names=[name], shape_and_slices=[spec], dtypes=[dtype])[0]


@contextlib.contextmanager
def _reading(path):
    """Makes TensorFlow's errors one that names the checkpoint, which not all of them do."""
    try:
        yield
    except tf.errors.OpError as error:
        raise ValueError(
            f"The checkpoint {path!r} is damaged, or a part of it is gone. Received: {error.message}. Restore another."
        ) from error


def _spec(shape, part) -> str:
    """TensorFlow's notation of a slice: the whole shape, then begin and size of every dimension."""
    if not shape.rank:
        return ""
    whole = " ".join(str(size) for size in shape)
    return f"{whole} " + ":".join(f"{b},{s}" for b, s in zip(part.begin, part.size, strict=True))
