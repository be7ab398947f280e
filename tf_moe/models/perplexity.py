"""Perplexity as a Keras metric."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tf_moe")
class Perplexity(keras.metrics.SparseCategoricalCrossentropy):
    """The exponential of the mean cross-entropy of integer targets, each weighted by its sample weight.

    Pass it to `compile(weighted_metrics=...)`: with weight 0 on padding it is exact over all tokens of a data set,
    which the logged loss is not where batches hold different numbers of them.

    Args:
        name: Name of the metric. Default "perplexity".
        dtype: Data type of the result. Default float32.
        from_logits: Whether predictions are logits rather than probabilities. Default True.

    Example:

    >>> metric = tf_moe.models.Perplexity()
    >>> metric.update_state([0, 1], [[0.0, 0.0], [0.0, 0.0]])
    >>> float(metric.result())
    2.0
    """

    def __init__(self, name: str = "perplexity", dtype=None, from_logits: bool = True, **kwargs):
        super().__init__(name=name, dtype=dtype, from_logits=from_logits, **kwargs)

    def update_state(self, y_true, y_pred, sample_weight=None):
        # Keras's losses cast the targets like this. With the same inputs the graph optimizer sees that loss and metric
        # want the same cross-entropy and computes it once; without, a large vocabulary's would cost twice.
        super().update_state(tf.cast(y_true, tf.float32), tf.convert_to_tensor(y_pred), sample_weight)

    def result(self):
        return tf.exp(super().result())
