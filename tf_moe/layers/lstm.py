"""The LSTM layer: Keras's arguments, weights and numbers, a loop of its own, and the paper's projection."""

import keras
import tensorflow as tf

from tf_moe import checks
from tf_moe.initializers import Initializer
from tf_moe.layers.lstm_cell import LSTMCell
from tf_moe.ops.bias import add_bias
from tf_moe.recurrence.buffers import buffers_for
from tf_moe.recurrence.lstm_gates import lstm_gates_for
from tf_moe.recurrence.scan import lstm_scan
from tf_moe.recurrence.steps import rows_of_zeros

# The arguments of keras.layers.LSTM that describe its cell; the others are the layer's.
_CELL_ARGUMENTS = {
    "activation", "recurrent_activation", "use_bias", "unit_forget_bias",
    "dropout", "recurrent_dropout", "seed", "implementation",
    "kernel_initializer", "recurrent_initializer", "bias_initializer",
    "kernel_regularizer", "recurrent_regularizer", "bias_regularizer",
    "kernel_constraint", "recurrent_constraint", "bias_constraint",
}  # fmt: skip


@keras.saving.register_keras_serializable(package="tf_moe")
class LSTM(keras.layers.LSTM):
    """Long short-term memory with an optional recurrent projection, in the place of keras.layers.LSTM.

    With the same weights it gives what keras.layers.LSTM gives, and weights move between the two. The loop is made
    for training: products that do not depend on the previous step are one product for all steps, the gradient is
    hand-written, XLA compiles it (`jit_compile=True`), and its variables may live on a DTensor mesh.

    Args:
        units: Positive integer. Width of the cell state, and of the output if `projection` is None.
        projection: Positive integer or None (default). If given, h_t = (o_t * act(c_t)) @ projection_kernel is
            the output and the recurrent state, of this width; the paper's LSTM-2048-512 is
            LSTM(2048, projection=512).
        projection_initializer: Initializer of `projection_kernel` [units, projection]. Default "glorot_uniform".
        projection_regularizer: Regularizer of `projection_kernel`. Default None.
        projection_constraint: Constraint of `projection_kernel`. Default None.
        use_cudnn: "auto" (default), True or False. Unless False, Keras runs the loop where it would use cuDNN
            (a GPU, tanh and sigmoid, a bias, no recurrent dropout, no unroll) and there is no projection; XLA is
            then off, as in Keras. True raises, as in Keras, where cuDNN cannot run.
        **kwargs: The other arguments of keras.layers.LSTM, with its defaults, by keyword. `unroll=True` asks for
            a static time length, as in Keras, but the loop stays a loop: it is not what costs time here.

    Call arguments:
        sequences: [B, T, D] floats. T may be 0: the output is then zero and the state as it was.
        initial_state: [h [B, projection or units], c [B, units]] or None (default) for zeros.
        mask: [B, T] booleans or None (default). A False step leaves the state as it was.
        training: Boolean. Whether dropout is on. Default False. With True the loop also keeps what the backward
            pass needs; a gradient taken with False is the same, but runs the forward loop twice.

    Returns:
        [B, P] or, with return_sequences=True, [B, T, P], in the compute dtype; P is `projection` or `units`.
        With return_state=True a tuple of it, h [B, P] and c [B, units].

    Raises:
        ValueError: If `units` is not a positive integer; if `projection` is neither None nor one, or comes with
            use_cudnn=True; if `use_cudnn` is none of its three values; if a dropout is not in 0 to 1. When called: if
            the width has changed, or a mask or initial state does not fit.

    Example:
        >>> tf_moe.layers.LSTM(64, projection=16, return_sequences=True)(tf.zeros([2, 20, 16])).shape
        TensorShape([2, 20, 16])

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
        use_cudnn: bool | str = "auto",
        **kwargs,
    ):
        cell = LSTMCell(
            units,
            projection,
            projection_initializer,
            projection_regularizer,
            projection_constraint,
            name="lstm_cell",
            dtype=kwargs.get("dtype"),
            trainable=kwargs.get("trainable", True),
            **{name: kwargs.pop(name) for name in _CELL_ARGUMENTS & set(kwargs)},
        )
        # Not super().__init__: that of keras.layers.LSTM would make, and track for ever, a cell of its own.
        keras.layers.RNN.__init__(self, cell, **kwargs)
        self.input_spec = keras.layers.InputSpec(ndim=3)
        self.use_cudnn = use_cudnn

    @property
    def use_cudnn(self) -> bool | str:
        """Whether to run on cuDNN; may be set, for what is traced afterwards."""
        return self._use_cudnn

    @use_cudnn.setter
    def use_cudnn(self, value: bool | str):
        if value != "auto" and not isinstance(value, bool):
            raise ValueError(f"use_cudnn must be 'auto', True or False. Received: use_cudnn={value!r}.")
        if value is True and self.projection is not None:
            raise ValueError(
                f"cuDNN's LSTM has no projection here. Received: projection={self.projection}, use_cudnn=True. "
                "Pass use_cudnn='auto' or False."
            )
        self._use_cudnn = value
        self.supports_jit = not self._uses_cudnn()  # cuDNN's operations are not XLA's

    def build(self, sequences_shape, initial_state_shape=None):
        super().build(sequences_shape, initial_state_shape)
        self.input_spec = keras.layers.InputSpec(ndim=3, axes={-1: sequences_shape[-1]})

    def call(self, sequences, initial_state=None, mask=None, training=False):
        training = checks.training(training)
        if sequences.shape[1] != 0:
            return super().call(sequences, initial_state=initial_state, mask=mask, training=training)
        # Keras looks at the first step. Without any, one masked step has the right effect: none.
        sequences = tf.pad(sequences, [[0, 0], [0, 1], [0, 0]])
        mask = tf.zeros_like(sequences[:, :, 0], tf.bool)
        outputs = super().call(sequences, initial_state=initial_state, mask=mask, training=training)
        if not self.return_sequences:
            return outputs
        return (outputs[0][:, :0], *outputs[1:]) if self.return_state else outputs[:, :0]

    def inner_loop(self, sequences, initial_state, mask, training=False):
        if self.use_cudnn is True or self._uses_cudnn():
            if training:
                super()._maybe_config_dropout_masks(self.cell, sequences[:, 0], initial_state)
            return super().inner_loop(sequences, initial_state, mask, training=training)
        cell, mask = self.cell, _time_major(mask, sequences)
        _check_state(initial_state, sequences, cell.state_size)
        buffers = buffers_for(cell.recurrent_kernel)
        sequences = tf.transpose(tf.cast(sequences, self.compute_dtype), [1, 0, 2])
        if self.go_backwards:
            sequences, mask = buffers.reverse(sequences), None if mask is None else buffers.reverse(mask)
        z = self._input_product(sequences, initial_state[0], training, buffers.product)
        dropout = None
        if _drops(cell.recurrent_dropout, training):
            dropout = self._dropout_masks(initial_state[0], cell.recurrent_dropout, 4)
        outputs, h, c = lstm_scan(
            z,
            tf.convert_to_tensor(cell.recurrent_kernel),
            *initial_state,
            None if cell.projection is None else tf.convert_to_tensor(cell.projection_kernel),
            gates=lstm_gates_for(cell.activation, cell.recurrent_activation),
            mask=mask,
            dropout=dropout,
            buffers=buffers,
            keep=bool(training),
        )
        last = h
        if mask is not None:
            # As in Keras: the output before the first step that counts is zero, whatever the initial state.
            shown = mask if self.zero_output_for_mask else tf.cumsum(tf.cast(mask, tf.int32)) > 0
            outputs = tf.where(tf.expand_dims(shown, -1), outputs, tf.zeros_like(outputs))
            last = tf.where(tf.expand_dims(tf.reduce_any(shown[-1:], 0), -1), h, tf.zeros_like(h))
        return last, tf.transpose(outputs, [1, 0, 2]), [h, c]

    def _maybe_config_dropout_masks(self, cell, input_sequence, input_state):
        # Keras draws the masks before the loop, at inference too, from a state that tf.saved_model.save does not find.
        # Here they are drawn where they are used, and not kept at the cell, where another thread would find them.
        pass

    def _dropout_masks(self, rows, rate, number):
        """So many masks of the shape of some rows, each with the numbers that Keras's LSTM draws."""
        ones, seed = tf.ones_like(rows), self.cell.seed_generator
        return [keras.random.dropout(ones, rate, seed=seed) for _ in range(number)]

    def _input_product(self, sequences, state, training, product):
        """The input's part of the gates for all steps, [T, B, D] -> [T, B, 4*units]; the state has the batch."""
        kernel = tf.convert_to_tensor(self.cell.kernel)
        if _drops(self.cell.dropout, training):
            number = 4 if self.cell.implementation == 1 else 1  # a mask for each gate, or one for all
            masks = self._dropout_masks(rows_of_zeros(state, sequences.shape[-1]), self.cell.dropout, number)
            gates = zip(masks, tf.split(kernel, number, axis=1), strict=True)
            z = tf.concat([product(sequences * mask, part) for mask, part in gates], axis=-1)
        else:
            z = product(sequences, kernel)
        return z if self.cell.bias is None else add_bias(z, tf.convert_to_tensor(self.cell.bias))

    def _uses_cudnn(self):
        """Whether keras.layers.LSTM would run on cuDNN here, and this layer can let it."""
        return (
            self.use_cudnn in ("auto", True)
            and self.cell.projection is None
            and self.cell.activation is keras.activations.tanh
            and self.cell.recurrent_activation is keras.activations.sigmoid
            and self.cell.use_bias
            and not self.cell.recurrent_dropout
            and not (self.cell.dropout and self.cell.implementation == 1)  # Keras 3.15 crashes on its four masks
            and not self.unroll
            and bool(tf.config.list_physical_devices("GPU"))
        )

    @property
    def projection(self):
        return self.cell.projection

    @property
    def projection_initializer(self):
        return self.cell.projection_initializer

    @property
    def projection_regularizer(self):
        return self.cell.projection_regularizer

    @property
    def projection_constraint(self):
        return self.cell.projection_constraint

    def get_config(self):
        names = ("projection", "projection_initializer", "projection_regularizer", "projection_constraint")
        cell = self.cell.get_config()
        return {
            **super().get_config(),
            **{name: cell[name] for name in names},
            "implementation": self.cell.implementation,
            "use_cudnn": self.use_cudnn,
        }


def _drops(rate, training):
    return bool(training) and 0.0 < rate < 1.0


def _check_state(state, sequences, sizes):
    """Raise ValueError unless the state is two tensors, of the batch and these sizes, as far as shapes are known."""
    received = [None if x is None else tuple(x.shape) for x in state]
    expected = [tf.TensorShape([sequences.shape[0], size]) for size in sizes]
    if len(received) != 2 or None in received or not all(map(tf.TensorShape.is_compatible_with, expected, received)):
        raise ValueError(
            f"initial_state must be [h, c], of shapes ({sequences.shape[0]}, {sizes[0]}) and "
            f"({sequences.shape[0]}, {sizes[1]}). Received: initial_state of shapes {received}."
        )


def _time_major(mask, sequences):
    """A mask [B, T] or [B, T, 1] of any dtype, or a list whose first is one, as booleans [T, B]; or None."""
    if isinstance(mask, (list, tuple)):
        mask = mask[0]
    if mask is None:
        return None
    if len(mask.shape) == 3:
        mask = tf.squeeze(mask, -1)
    return tf.transpose(checks.mask(mask, sequences))
