"""How a trained model uses its experts."""

from collections.abc import Iterable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_moe import checks
from tf_moe.layers import SparseMoE
from tf_moe.losses import cv_squared


class Usage(NamedTuple):
    """How often and how strongly the experts of one layer were used.

    Attributes:
        load: Float `(E,)`, number of positions sent to each expert.
        importance: Float `(E,)`, sum of its gate values.
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
        model: A functional or Sequential model.
        batches: Its inputs; of tuples, as `fit` takes them, the first part is used.

    Returns:
        A `Usage` for each layer's name, summed over all batches.

    Raises:
        ValueError: If the model has no SparseMoE layer, or is not built.
        TypeError: If it is no model.

    Reference: the columns CV(Importance), CV(Load) and max/mean Load of table 6 of Shazeer et al. (2017).
    """
    checks.built_model(model)
    layers = [layer for layer in model.layers if isinstance(layer, SparseMoE)]
    if not layers:
        raise ValueError(f"The model has no SparseMoE layer. Received: {model.name!r} with layers {model.layers}.")
    # What enters a layer: its inputs, and its mask where there is one.
    entering = {layer.name: layer.input if isinstance(layer.input, list) else [layer.input] for layer in layers}
    inputs_of = keras.Model(model.inputs, entering)

    @tf.function(reduce_retracing=True, autograph=False)
    def route(x):
        routings = {name: model.get_layer(name).route(*given) for name, given in inputs_of(x, training=False).items()}
        return {name: (routing.load, routing.importance) for name, routing in routings.items()}

    totals = {layer.name: Usage(np.zeros(layer.total_experts), np.zeros(layer.total_experts)) for layer in layers}
    for batch in batches:
        parts = route(batch[0] if isinstance(batch, (list, tuple)) else batch)
        for name, (load, importance) in parts.items():
            before = totals[name]
            totals[name] = Usage(before.load + load.numpy(), before.importance + importance.numpy())
    return totals
