"""Cross-entropy of integer targets with label smoothing."""

import keras
import tensorflow as tf

from tf_moe import checks


@keras.saving.register_keras_serializable(package="tf_moe")
class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy between logits and integer targets of which a share is spread evenly over all words.

    `(1 - s) * -log p(y) + s * mean_v -log p(v)`: what keras.losses.CategoricalCrossentropy(label_smoothing=s) gives for
    one-hot targets, without making them, which take as much memory as the logits. Computed in float32. As any loss of
    Keras's it leaves out what is masked in the model's output, and takes sample weights.

    Args:
        label_smoothing: The share s, 0 to 1. Default 0.1, that of Vaswani et al. (2017).
        name: Default "smoothed_crossentropy".
        **kwargs: Arguments of `keras.losses.Loss`.

    Call arguments:
        y_true: Integers `(...)`, or `(..., 1)`.
        y_pred: Logits `(..., V)`.

    Raises:
        ValueError: If `label_smoothing` is no number from 0 to 1, or targets have another shape.

    Example:

    >>> loss = tf_moe.models.SmoothedCrossentropy(0.1)
    >>> round(float(loss(tf.constant([[1]]), tf.zeros([1, 1, 2]))), 3)
    0.693

    Reference: Szegedy et al. (2016), Rethinking the Inception architecture, section 7.
    """

    def __init__(self, label_smoothing: float = 0.1, name: str = "smoothed_crossentropy", **kwargs):
        super().__init__(name=name, **{"dtype": "float32", **kwargs})
        self.label_smoothing = checks.zero_to_one("label_smoothing", label_smoothing)

    def call(self, y_true, y_pred):
        loss = keras.losses.sparse_categorical_crossentropy(checks.targets(y_true, y_pred), y_pred, from_logits=True)
        if not self.label_smoothing:
            return loss
        # The mean over v of -log p(v), p = softmax(logits).
        even = tf.reduce_logsumexp(y_pred, -1) - tf.reduce_mean(y_pred, -1)
        return (1 - self.label_smoothing) * loss + self.label_smoothing * even

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}
