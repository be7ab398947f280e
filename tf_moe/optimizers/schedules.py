"""The paper's learning rates."""

import keras
import tensorflow as tf

from tf_moe import checks


@keras.saving.register_keras_serializable(package="tf_moe")
class WarmupInverseSqrt(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly, stays, and then falls with the inverse square root of the step.

    ```
    step <= warmup_steps:                     learning_rate * step / warmup_steps
    step <= warmup_steps + constant_steps:    learning_rate
    beyond:                                   learning_rate * sqrt((warmup_steps + constant_steps) / step)
    ```

    Steps count from 1: the first update already moves the weights.

    Args:
        learning_rate: The highest learning rate.
        warmup_steps: Steps in which it is reached. Default 1000, as for the paper's language models (appendix C.1).
        constant_steps: Steps for which it is kept. Default 0; for translation the paper has 2000 and 8000 (appendix E).

    Raises:
        ValueError: If warmup_steps is below 1, or another argument negative.

    Example:

    >>> schedule = tf_moe.optimizers.WarmupInverseSqrt(0.001, warmup_steps=2000, constant_steps=8000)
    >>> [round(float(schedule(step)), 6) for step in (0, 999, 5000, 39_999)]
    [1e-06, 0.0005, 0.001, 0.0005]

    Reference: appendices C.1 and E of Shazeer et al. (2017).
    """

    def __init__(self, learning_rate: float, warmup_steps: float = 1000, constant_steps: float = 0):
        super().__init__()
        # Numbers of steps may be floats, as 1e4 is one.
        self.learning_rate = checks.at_least_zero("learning_rate", learning_rate)
        self.warmup_steps = checks.number("warmup_steps", warmup_steps, "a number, 1 or more", lambda x: x >= 1)
        self.constant_steps = checks.at_least_zero("constant_steps", constant_steps)

    def __call__(self, step):
        step = tf.cast(step, tf.float32) + 1.0
        falls_from = float(self.warmup_steps + self.constant_steps)
        return self.learning_rate * tf.minimum(
            tf.minimum(1.0, step / self.warmup_steps), tf.sqrt(falls_from / tf.maximum(step, falls_from))
        )

    def get_config(self):
        return {
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "constant_steps": self.constant_steps,
        }
