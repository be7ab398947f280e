"""Perplexity as a Keras metric."""

import math

import keras
import tensorflow as tf

from tf_moe.layers.sampled_softmax import sampled_losses
from tf_moe.ops.masks import attach_mask, attached_mask


@keras.saving.register_keras_serializable(package="tf_moe")
class Perplexity(keras.metrics.SparseCategoricalCrossentropy):
    """The exponential of the mean cross-entropy of integer targets, each weighted by its sample weight.

    Pass it to `compile(weighted_metrics=...)`: with weight 0 on padding it is exact over all tokens of a data set,
    which the logged loss is not where batches hold different numbers of them, nor Keras's metrics where they differ in
    length. Of no tokens it is NaN, and not 1, the best there is. With `tf_moe.layers.SampledSoftmax` it is an estimate
    in training, that of the loss.

    Args:
        name: Name of the metric. Default "perplexity".
        dtype: Data type of the result. Default float32.
        from_logits: Whether predictions are logits rather than probabilities. Default True.
        **kwargs: Other arguments of `keras.metrics.SparseCategoricalCrossentropy`.

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
        y_true = tf.cast(y_true, tf.float32)
        weights = tf.ones_like(y_true) if sample_weight is None else tf.cast(sample_weight, tf.float32)
        # Keras takes the mean over a row's positions first: tokens of a batch of short rows would count for more.
        rows = y_true.shape[1:]
        positions = math.prod(rows) if rows.is_fully_defined() else tf.reduce_prod(tf.shape(y_true)[1:])
        weights *= tf.cast(positions, tf.float32)
        losses, mask = sampled_losses(y_pred), attached_mask(y_pred)
        if losses is not None:
            attach_mask(losses, mask)
            keras.metrics.Mean.update_state(self, losses, weights)
            return
        y_pred = tf.convert_to_tensor(y_pred)
        if y_pred.dtype != tf.float64:  # as the loss has it, which Keras computes in float32
            y_pred = tf.cast(y_pred, tf.float32)
        attach_mask(y_pred, mask)  # or Keras would count padding too
        super().update_state(y_true, y_pred, weights)

    def result(self):
        mean = super().result()
        return tf.where(tf.convert_to_tensor(self.count) > 0, tf.exp(mean), math.nan)
