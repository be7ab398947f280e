"""An optimizer for the experts and another one for everything else."""

import keras

# The weights of the experts of a `SparseMoE` have this in their paths.
_EXPERTS = r"(.*/)?experts/.*"


@keras.saving.register_keras_serializable(package="tf_moe")
class OptimizerOfParts(keras.optimizers.MultiOptimizer):
    """What `optimizer_for` returns: Keras's optimizer of several, whose two `tf.train.Checkpoint` finds.

    TensorFlow looks for state in attributes. Keras has its optimizers in a list only, and a checkpoint of it would hold
    no slots, without a word.

    Attributes:
        experts: The optimizer of the experts' weights.
        others: The optimizer of all others.
    """

    def __init__(self, optimizer_map: keras.optimizers.OptimizerMap, **kwargs):
        super().__init__(optimizer_map, **kwargs)
        self.experts, self.others = self.optimizers


def optimizer_for(experts: keras.optimizers.Optimizer, others: keras.optimizers.Optimizer) -> OptimizerOfParts:
    """One optimizer of two: for the experts of all `SparseMoE` layers, and for all other weights.

    The paper's largest models keep less for the experts, which have nearly all weights, than for the rest. What the two
    do, they do each for their part: learning rates, clipping by global norm, decay, averages.

    Args:
        experts: The optimizer of the experts' weights, those with a layer named "experts" in their path.
        others: The optimizer of all others.

    Returns:
        A `keras.optimizers.MultiOptimizer` with the attributes `experts` and `others`. It is saved, compiled and used
        as any.

    Raises:
        TypeError: If `others` is no optimizer.
        ValueError: If `experts` is none, or the same one.

    Example:

    ```python
    optimizer = tf_moe.optimizers.optimizer_for(
        experts=tf_moe.optimizers.FactoredAdam(1e-3), others=keras.optimizers.Adam(1e-3)
    )
    model.compile(optimizer, loss)
    ```

    Reference: appendix D of Shazeer et al. (2017).
    """
    optimizers = keras.optimizers.OptimizerMap(others)
    optimizers[_EXPERTS] = experts
    if experts is others:
        raise ValueError(
            f"experts and others must be two optimizers, each with its own state. Received: {experts!r} for both."
        )
    return OptimizerOfParts(optimizers)
