"""The weights and the single step of an LSTM whose output may be projected to a smaller width."""

import keras

from tf_moe import checks
from tf_moe.initializers import Initializer


@keras.saving.register_keras_serializable(package="tf_moe")
class LSTMCell(keras.layers.LSTMCell):
    """keras.layers.LSTMCell with an optional recurrent projection: h = (o * act(c)) @ projection_kernel.

    Args:
        units: Positive integer. Width of the cell state.
        projection: Positive integer or None (default, as keras.layers.LSTMCell). Width of the output and of h.
        projection_initializer: Initializer of `projection_kernel` [units, projection]. Default "glorot_uniform".
        projection_regularizer: Regularizer of `projection_kernel`. Default None.
        projection_constraint: Constraint of `projection_kernel`. Default None.
        **kwargs: Arguments of keras.layers.LSTMCell.

    Raises:
        ValueError: If `units` is no positive integer, `projection` neither None nor one, or a dropout not in 0 to 1.

    Example:
        >>> cell = LSTMCell(2048, projection=512)
        >>> cell.state_size, cell.output_size
        ([512, 2048], 512)

    Reference:
        Sak, Senior & Beaufays 2014, section 2 (the LSTMP); used by Shazeer et al. 2017, appendix C.
    """

    def __init__(
        self,
        units: int,
        projection: int | None = None,
        projection_initializer: Initializer = "glorot_uniform",
        projection_regularizer: str | keras.regularizers.Regularizer | None = None,
        projection_constraint: str | keras.constraints.Constraint | None = None,
        **kwargs,
    ):
        units = checks.integer("units", units)
        for name in ("dropout", "recurrent_dropout"):  # which Keras cuts to what can be
            checks.zero_to_one(name, kwargs.get(name, 0.0))
        super().__init__(units, **kwargs)
        if projection is not None:
            projection = checks.integer("projection", projection, hint=", or None")
        self.projection = projection
        # An initializer draws its seed when it is made. Without a projection none is made, so that with the same
        # global seed the layers that follow get the weights they get after Keras's LSTM.
        used = None if projection is None else projection_initializer
        self.projection_initializer = keras.initializers.get(used)
        self.projection_regularizer = keras.regularizers.get(projection_regularizer)
        self.projection_constraint = keras.constraints.get(projection_constraint)
        self.output_size = units if projection is None else projection
        self.state_size = [self.output_size, units]

    def add_weight(self, shape=None, name=None, **kwargs):
        # Keras's build knows no projection: the rows of its recurrent kernel are as many as units.
        if name == "recurrent_kernel":
            shape = (self.output_size, 4 * self.units)
        return super().add_weight(shape=shape, name=name, **kwargs)

    def build(self, input_shape):
        super().build(input_shape)
        self.projection_kernel = None
        if self.projection is not None:
            self.projection_kernel = self.add_weight(
                shape=(self.units, self.projection),
                name="projection_kernel",
                initializer=self.projection_initializer,
                regularizer=self.projection_regularizer,
                constraint=self.projection_constraint,
            )

    def call(self, inputs, states, training=False):
        output, (_, c) = super().call(inputs, states, training=training)
        h = output if self.projection is None else keras.ops.matmul(output, self.projection_kernel)
        return h, [h, c]

    def get_config(self):
        return {
            **super().get_config(),
            "projection": self.projection,
            "projection_initializer": keras.initializers.serialize(self.projection_initializer),
            "projection_regularizer": keras.regularizers.serialize(self.projection_regularizer),
            "projection_constraint": keras.constraints.serialize(self.projection_constraint),
        }
