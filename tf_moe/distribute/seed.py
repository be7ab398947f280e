"""The seed that a script has set."""

import tensorflow as tf

_UNSET = 87654321  # which TensorFlow names when none is set


def global_seed() -> int | None:
    """What `keras.utils.set_random_seed` or `tf.random.set_seed` was called with last; None without one.

    What draws without a seed of its own follows it, and without one is seeded anew in every run.
    """
    seed = tf.compat.v1.get_seed(0)[0]  # of (None) it would use up a number, and so change what follows
    return None if seed == _UNSET else seed
