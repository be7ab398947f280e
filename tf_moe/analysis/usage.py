"""How a trained model uses its experts."""

from collections.abc import Iterable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_moe import checks
from tf_moe.layers import record_routings
from tf_moe.losses import cv_squared


class Usage(NamedTuple):
    """How often and how strongly the experts of one layer were used.

    Attributes:
        load: Float32 `(E,)`, number of positions sent to each expert.
        importance: Float32 `(E,)`, sum of its gate values.

    Example:

    >>> usage = tf_moe.analysis.Usage(load=np.array([6.0, 2.0]), importance=np.array([3.0, 1.0]))
    >>> float(usage.load.max() / usage.load.mean())
    1.5
    """

    load: np.ndarray
    importance: np.ndarray

    @property
    def load_cv(self) -> float:
        """Coefficient of variation of the load, the standard deviation over the mean."""
        return float(cv_squared(self.load)) ** 0.5

    @property
    def importance_cv(self) -> float:
        """Coefficient of variation of the importance."""
        return float(cv_squared(self.importance)) ** 0.5

    @property
    def max_over_mean_load(self) -> float:
        """Load of the busiest expert over the mean."""
        return float(self.load.max() / self.load.mean()) if self.load.any() else 0.0


def measure_usage(model: keras.Model, batches: Iterable) -> dict[str, Usage]:
    """Load and importance of the experts of every SparseMoE layer of a model, at evaluation.

    Args:
        model: Any Keras model, layers inside of layers too.
        batches: Its inputs; of tuples, as `fit` takes them, the first part is used.

    Returns:
        A `Usage` for each layer's name, summed over all batches and all its calls.

    Raises:
        ValueError: If the model has no SparseMoE layer, or two of one name, is not built, or there is no batch.
        TypeError: If it is no model.

    Example:

    >>> usage = tf_moe.analysis.measure_usage(model, dataset)["moe"]
    >>> int(usage.load.sum()), round(float(usage.importance.sum()))  # 16 x 8 positions, 2 experts for each
    (256, 128)

    Reference: the columns CV(Importance), CV(Load) and max/mean Load of table 6 of Shazeer et al. (2017).
    """
    checks.built_model(model)
    totals: dict[str, Usage] = {}

    @tf.function(reduce_retracing=True, autograph=False)
    def route(x):
        with record_routings() as routings:
            model(x, training=False)
        parts, layers = {}, {}
        for layer, routing in routings:  # one layer may have been called several times
            if layers.setdefault(layer.name, layer) is not layer:
                raise ValueError(f"Layers must have names of their own. Received: two of the name {layer.name!r}.")
            load, importance = parts.get(layer.name, (0.0, 0.0))
            parts[layer.name] = load + routing.load, importance + routing.importance
        return parts

    for batch in batches:
        for name, (load, importance) in route(inputs_of(batch)).items():
            before = totals.get(name, Usage(0.0, 0.0))
            totals[name] = Usage(before.load + load.numpy(), before.importance + importance.numpy())
    if not totals:
        raise ValueError(
            f"No SparseMoE layer was called on any batch. Received: {model.name!r} with layers {model.layers}."
        )
    return totals


def inputs_of(batch):
    """What the model is called with; of tuples as `fit` takes them, the first part."""
    return batch[0] if isinstance(batch, (list, tuple)) else batch
