"""How evenly a gate spreads its tokens, and what becomes of them, as metrics in the training log."""

import keras
import tensorflow as tf

from tf_moe.losses import cv_squared

BALANCE_METRICS = ("importance_cv", "load_cv", "max_over_mean_load", "dropped_fraction", "nonfinite_fraction")


def balance_metrics(prefix: str) -> dict[str, keras.metrics.Mean]:
    """A running mean for each number. Two metrics of one name would overwrite each other, hence the layer's name."""
    return {name: keras.metrics.Mean(name=f"{prefix}/{name}", dtype="float32") for name in BALANCE_METRICS}


def measure_balance(
    importance: tf.Tensor,
    load: tf.Tensor,
    dropped: tf.Tensor,
    assigned: tf.Tensor,
    nonfinite_fraction: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """The numbers of one batch, float32 scalars; all 0 for a batch without tokens.

    Args:
        importance: `(E,)`.
        load: `(E,)`, as the routing has it: where the gate draws noise, the smooth estimate of the noisy top-k gates.
        dropped: Scalar, assignments dropped.
        assigned: Scalar, assignments in all.
        nonfinite_fraction: Scalar, share of the unmasked tokens that are non-finite.
    """
    return {
        "importance_cv": tf.sqrt(cv_squared(importance)),
        "load_cv": tf.sqrt(cv_squared(load)),
        "max_over_mean_load": tf.math.divide_no_nan(tf.reduce_max(load), tf.reduce_mean(load)),
        "dropped_fraction": tf.math.divide_no_nan(tf.cast(dropped, tf.float32), tf.cast(assigned, tf.float32)),
        "nonfinite_fraction": nonfinite_fraction,
    }
