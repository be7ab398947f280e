"""An optimizer for the experts and another one for everything else."""

import warnings

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

    def build(self, var_list):
        if not self.built and not any(self._optimizer_map(variable) is self.experts for variable in var_list):
            # No error: programs that compare a mixture with a dense model give both the same optimizer.
            warnings.warn(
                "No weight goes to the optimizer of the experts, all go to the other one. "
                f"Received: {len(var_list)} weights, none with a layer named 'experts' in its path. Keras layers as "
                "experts get such a path only where SparseMoE builds them: let expert= return layers that are not "
                "built, so without a keras.Input and never called. For a model without experts pass `others` alone.",
                stacklevel=2,
            )
        super().build(var_list)


def optimizer_for(
    experts: keras.optimizers.Optimizer | str | dict, others: keras.optimizers.Optimizer | str | dict
) -> OptimizerOfParts:
    """One optimizer of two: for the experts of all `SparseMoE` layers, and for all other weights.

    The paper's largest models keep less state for the experts, which have nearly all weights, than for the rest. Each
    of the two acts on its own part only: learning rate, clipping by global norm, decay and averages are its own. The
    loss is that of both, and so is a `loss_scale_factor`.

    Args:
        experts: The optimizer of the experts' weights, those with a layer named "experts" in their path, or what
            `keras.optimizers.get` takes for one. Keras layers as experts have it if they were not built before the
            `SparseMoE`. Where no weight has, a warning says so.
        others: The optimizer of all others, likewise.

    Returns:
        A `keras.optimizers.MultiOptimizer` with the attributes `experts` and `others`. It is saved, compiled and used
        as any. Learning rates are those of the two: give each a schedule, or set `experts.learning_rate` and
        `others.learning_rate`; Keras's callbacks `LearningRateScheduler` and `ReduceLROnPlateau` set or reduce both.
        For float16, put the whole into a `LossScaleOptimizer`.

    Raises:
        ValueError: If one is no optimizer, they are the same object, or differ in their `loss_scale_factor`.

    Example:

    ```python
    optimizer = tf_moe.optimizers.optimizer_for(
        experts=tf_moe.optimizers.FactoredAdam(1e-3), others=keras.optimizers.Adam(1e-3)
    )
    model.compile(optimizer, loss)
    ```

    Reference: appendix D of Shazeer et al. (2017).
    """
    experts, others = keras.optimizers.get(experts), keras.optimizers.get(others)
    optimizers = keras.optimizers.OptimizerMap(others)
    optimizers[_EXPERTS] = experts
    if experts is others:
        raise ValueError(
            f"experts and others must be two optimizers, each with its own state. Received: {experts!r} for both."
        )
    if experts.loss_scale_factor != others.loss_scale_factor:
        raise ValueError(
            "experts and others must have the same loss_scale_factor, since both get gradients of one loss. Received: "
            f"{experts.loss_scale_factor} for the experts, {others.loss_scale_factor} for the others."
        )
    # Keras takes that of the whole for both, whatever they had.
    return OptimizerOfParts(optimizers, loss_scale_factor=experts.loss_scale_factor)
