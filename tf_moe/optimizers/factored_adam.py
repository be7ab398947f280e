"""Adam with factored second moments, for banks of experts that are most of a model's memory."""

import numbers
from collections.abc import Callable

import keras
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule

from tf_moe import checks
from tf_moe.ops.sum_dtype import sum_dtype
from tf_moe.ops.xla import compiled_by_xla
from tf_moe.optimizers.factored_update import State, update, update_in_place


@keras.saving.register_keras_serializable(package="tf_moe")
class FactoredAdam(keras.optimizers.Optimizer):
    """Adam that keeps only row and column averages of the squared gradient and, by default, no momentum.

    For a matrix, and for each matrix of a stacked weight `(E, D, H)` by itself, the second moment is estimated as

    ```
    row[i] = moving average of mean_j(g[i, j]^2)
    col[j] = moving average of mean_i(g[i, j]^2)
    v[i, j] = row[i] * col[j] / mean(row)
    w -= learning_rate * m / (sqrt(v) + epsilon)        with m = g where beta_1 is 0
    ```

    with Adam's bias corrections. A bank of E experts of D x H keeps E (D + H) numbers where Adam
    keeps 2 E D H. Vectors, and stacks of vectors such as the experts' biases, keep the whole second moment. For
    half-precision weights, all this and the arithmetic are in float32.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule` or a callable. Default 0.001.
        beta_1: Decay of the average gradient. Default 0, as in the paper: no average is kept.
        beta_2: Decay of the averages of squared gradients. Default 0.999.
        epsilon: Added to the root of the second moment. Default 1e-7.
        weight_decay: As in all Keras optimizers, and so are `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`,
            `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor` and `gradient_accumulation_steps`.
        name: Default "factored_adam".
        **kwargs: The arguments just named.

    Raises:
        ValueError: If beta_1 or beta_2 is not in [0, 1), a learning rate, epsilon or weight decay negative or NaN, or
            what gradients are clipped to not positive.

    Example:

    >>> optimizer = tf_moe.optimizers.FactoredAdam(1e-3)
    >>> optimizer.build([keras.Variable(tf.zeros([4, 16, 32]))])
    >>> [tuple(v.shape) for v in optimizer.variables[2:]]
    [(4, 16), (4, 32)]

    Reference: appendix D of Shazeer et al. (2017).
    """

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable[[], float] = 0.001,
        beta_1: float = 0.0,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        weight_decay: float | None = None,
        name: str = "factored_adam",
        **kwargs,
    ):
        if weight_decay is not None:
            weight_decay = checks.at_least_zero("weight_decay", weight_decay)
        if isinstance(learning_rate, numbers.Real):
            learning_rate = checks.at_least_zero("learning_rate", learning_rate)
        for clip in ("clipnorm", "clipvalue", "global_clipnorm"):
            if kwargs.get(clip) is not None:  # Keras takes a negative one for none
                checks.number(clip, kwargs[clip], "a positive number, or None", lambda x: x > 0)
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay, name=name, **kwargs)
        self.beta_1 = checks.zero_to_below_one("beta_1", beta_1)
        self.beta_2 = checks.zero_to_below_one("beta_2", beta_2)
        self.epsilon = checks.at_least_zero("epsilon", epsilon)

    def build(self, var_list):
        if self.built:
            return
        super().build(var_list)
        self._momentums = [self._add_slot(v, v.shape, "momentum") for v in var_list] if self.beta_1 else None
        self._moments = [self._add_moments(variable) for variable in var_list]
        # Its own, as a compiled function does not outlive the variables of its first call; and in a closure, for
        # TensorFlow would take an attribute that is one to be part of what is saved.
        compiled = tf.function(update_in_place, jit_compile=True, autograph=False)
        self._update_in_place = lambda *arguments: compiled(*arguments)

    def _add_moments(self, variable):
        """The averages of a weight: of its rows and of its columns, or of all of it."""
        if not is_factored(variable):
            return (self._add_slot(variable, variable.shape, "velocity"),)
        *stack, rows, columns = variable.shape
        return (
            self._add_slot(variable, (*stack, rows), "row_velocity"),
            self._add_slot(variable, (*stack, columns), "column_velocity"),
        )

    def _add_slot(self, variable, shape, kind):
        path = getattr(variable, "path", variable.name)  # which a variable of TensorFlow has not
        name = f"{path.replace('/', '_').replace(':', '_')}_{kind}"
        with self._distribution_strategy.extended.colocate_vars_with(_tf_variable(variable)):
            return self.add_variable(shape, dtype=_slot_dtype(variable), name=name)

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        momentum = (self._momentums[index],) if self.beta_1 else ()
        state = State(variable, self._moments[index], momentum)
        gradient = tf.convert_to_tensor(gradient)
        scalars = (learning_rate, self.iterations + 1, self.beta_1, self.beta_2, self.epsilon)
        scalars = [tf.cast(x, _slot_dtype(variable)) for x in scalars]
        if len(state.moments) == 2 and not tf.distribute.has_strategy() and not compiled_by_xla():
            self._update_in_place(tf.nest.map_structure(_tf_variable, state), gradient, scalars)
            return
        # Under a strategy weights are more than one plain variable, and what XLA compiles is fused already.
        new = update(tf.nest.map_structure(tf.convert_to_tensor, state), gradient, scalars)
        tf.nest.map_structure(self.assign, state, new)

    def get_config(self):
        return {**super().get_config(), "beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}


def is_factored(variable: keras.Variable) -> bool:
    """Whether a weight is a matrix or a stack of matrices."""
    return len(variable.shape) - getattr(variable, "stacked_axes", 0) >= 2


def _slot_dtype(variable):
    """Averages are sums of many small parts."""
    return sum_dtype(variable.dtype).name


def _tf_variable(variable):
    return variable.value if isinstance(variable, keras.Variable) else variable
