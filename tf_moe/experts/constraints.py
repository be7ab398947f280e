"""Constraints on weights that are stacked over experts."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tf_moe")
class ConstrainEach(keras.constraints.Constraint):
    """Applies a constraint to each expert's slice, so that its `axis` means what it means for one kernel.

    Args:
        constraint: A Keras constraint, its name or its config.
    """

    def __init__(self, constraint):
        self.constraint = keras.constraints.get(constraint)

    def __call__(self, w):
        # Not tf.map_fn, which makes a list of tensors: DTensor has none.
        return tf.vectorized_map(self.constraint, tf.convert_to_tensor(w))

    def get_config(self):
        return {"constraint": keras.constraints.serialize(self.constraint)}
