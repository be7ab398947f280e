"""The LSTM that feeds an attention and reads it: the first layer of a translation decoder."""

from typing import NamedTuple

import keras
import tensorflow as tf

from tf_moe import checks
from tf_moe.layers.attention import Attention, masked_softmax
from tf_moe.layers.frozen import freeze, frozen_config, without_frozen
from tf_moe.layers.lstm_cell import LSTMCell
from tf_moe.ops.bias import add_bias
from tf_moe.recurrence.buffers import buffers_for
from tf_moe.recurrence.lstm_gates import lstm_gates_for
from tf_moe.recurrence.steps import rows_of_zeros, scan_steps

# What the cell and the attention are made of: set afterwards, a copy or a file would have it, but not these.
_FIXED = {"units", "projection", "attention_units", "score"}


class AttentiveState(NamedTuple):
    """What one step leaves for the next.

    Attributes:
        h: `(N, P)`, the output.
        c: `(N, units)`, the cell state.
        context: `(N, M)`, what the attention read.

    Example:

    >>> layer = tf_moe.layers.AttentiveLSTM(32, projection=8)
    >>> layer.build((None, None, 8), (None, None, 4))
    >>> state = layer.initial_state(3)
    >>> state.h.shape, state.c.shape, state.context.shape
    (TensorShape([3, 8]), TensorShape([3, 32]), TensorShape([3, 4]))
    """

    h: tf.Tensor
    c: tf.Tensor
    context: tf.Tensor


@keras.saving.register_keras_serializable(package="tf_moe")
class AttentiveLSTM(keras.layers.Layer):
    """An LSTM whose output is the query of an attention, and whose input is joined with what that read a step before.

    ```
    h_t, c_t  = LSTM([x_t, context_{t-1}], h_{t-1}, c_{t-1})
    context_t = Attention(h_t, source)
    ```

    The attention waits for the LSTM and the LSTM for the attention, so both are one loop over time, with products that
    wait for neither outside of it.

    Args:
        units: Width of the cell state.
        projection: Width P of the output and of the recurrent state, or None (default) for `units`; see
            `tf_moe.layers.LSTM`.
        attention_units: Width of the attention's hidden layer. None (default): that of the output.
        score: "product" or "additive", see `tf_moe.layers.Attention`. Default "product".
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If a size is no positive integer, `score` unknown, or when called: an input that is not floating
            point of rank 3, or has no step, or a mask that does not fit.

    Call arguments:
        inputs: `(B, T, D)`, T at least 1.
        source: `(B, S, M)`.
        inputs_mask: Optional bool `(B, T)`; a False step leaves the state as it was, and its output is that of the step
            before. By default the inputs' Keras mask.
        source_mask: Optional bool `(B, S)`; where False, nothing is read. By default the source's Keras mask.

    Returns:
        Outputs `(B, T, P)` and contexts `(B, T, M)`.

    Example:

    >>> layer = tf_moe.layers.AttentiveLSTM(64, projection=16)
    >>> outputs, contexts = layer(tf.zeros([2, 5, 16]), tf.zeros([2, 7, 8]))
    >>> outputs.shape, contexts.shape
    (TensorShape([2, 5, 16]), TensorShape([2, 5, 8]))

    Reference: appendix E of Shazeer et al. (2017); Wu et al. (2016), section 3; Bahdanau et al. (2015).
    """

    def __init__(
        self,
        units: int,
        projection: int | None = None,
        attention_units: int | None = None,
        score: str = "product",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.cell = LSTMCell(units, projection, name="lstm_cell", dtype=self.dtype_policy)
        width = self.cell.output_size
        if attention_units is not None:
            width = attention_units = checks.integer("attention_units", attention_units)
        self.attention = Attention(width, score, name="attention", dtype=self.dtype_policy)
        self.units, self.projection = self.cell.units, self.cell.projection
        self.attention_units, self.score = attention_units, self.attention.score
        self._frozen = ()  # names of parts that a config says are not trainable
        self.supports_masking = True
        self.is_made = True

    def __setattr__(self, name, value):
        checks.not_fixed(self, name, value, _FIXED)
        super().__setattr__(name, value)

    def build(self, inputs_shape, source_shape):
        checks.sequences("inputs", inputs_shape)
        self.inputs_width, self.source_width = inputs_shape[-1], source_shape[-1]
        self.attention.build((None, None, self.cell.output_size), source_shape)
        self.cell.build((None, inputs_shape[-1] + self.source_width))
        freeze(self, self._parts(), self._frozen)

    def _parts(self) -> dict[str, keras.layers.Layer]:
        return {"cell": self.cell, "attention": self.attention}

    def call(self, inputs, source, inputs_mask=None, source_mask=None):
        cell, attention = self.cell, self.attention
        for name, x, width in (("inputs", inputs, self.inputs_width), ("source", source, self.source_width)):
            checks.floating("AttentiveLSTM", x)
            checks.sequences(name, x.shape, width)
        checks.same_batch(inputs=inputs, source=source)
        if inputs.shape[1] == 0:
            raise ValueError(f"inputs must have a step at least. Received: inputs of shape {tuple(inputs.shape)}.")
        buffers = buffers_for(cell.recurrent_kernel)
        inputs, source = tf.cast(inputs, self.compute_dtype), tf.cast(source, self.compute_dtype)
        mask = None if inputs_mask is None else tf.transpose(checks.mask(inputs_mask, inputs))
        source_mask = None if source_mask is None else checks.mask(source_mask, source)

        kernel, width = tf.convert_to_tensor(cell.kernel), inputs.shape[-1]
        z = buffers.product(tf.transpose(inputs, [1, 0, 2]), kernel[:width])
        z = add_bias(z, tf.convert_to_tensor(cell.bias))
        keys = attention.keys(source)
        matrices = {
            "recurrent": tf.concat([tf.convert_to_tensor(cell.recurrent_kernel), kernel[width:]], 0),
            "query": tf.convert_to_tensor(attention.query_kernel),
            "source": source,
        }
        if cell.projection is not None:
            matrices["projection"] = tf.convert_to_tensor(cell.projection_kernel)
        shared = [tf.convert_to_tensor(attention.scale)]
        if attention.score == "product":
            matrices["keys"] = tf.transpose(keys, [0, 2, 1])
        else:
            shared.append(keys)
        number = {name: n for n, name in enumerate(matrices)}
        gates = lstm_gates_for(cell.activation, cell.recurrent_activation)

        def step(inputs, state, shared, product):
            h, c, context = state
            h, c, _ = gates.forward(inputs[0] + product(number["recurrent"], tf.concat([h, context], -1)), c)
            if cell.projection is not None:
                h = product(number["projection"], h)
            q, scale = product(number["query"], h), shared[0]
            if attention.score == "product":
                scores = product(number["keys"], scale * tf.tanh(q))
            else:
                scores = tf.reduce_sum(scale * tf.tanh(tf.expand_dims(q, 1) + shared[1]), -1)
            weights = masked_softmax(scores, source_mask)
            return h, c, product(number["source"], tf.cast(weights, source.dtype))

        row = tf.gather(z, 0)
        first = [rows_of_zeros(row, size) for size in (*cell.state_size, source.shape[-1])]
        hs, _, contexts = scan_steps(step, [z], first, [*matrices.values()], shared, mask=mask, buffers=buffers)
        return tf.transpose(hs, [1, 0, 2]), tf.transpose(contexts, [1, 0, 2])

    def initial_state(self, rows: int | tf.Tensor) -> AttentiveState:
        """The state before the first step: zeros."""
        sizes = *self.cell.state_size, self.source_width
        return AttentiveState(*(tf.zeros([rows, size], self.compute_dtype) for size in sizes))

    def step(
        self,
        inputs: tf.Tensor,
        state: AttentiveState,
        keys: tf.Tensor,
        source: tf.Tensor,
        source_mask: tf.Tensor | None = None,
    ) -> tuple[AttentiveState, tf.Tensor]:
        """One step, as the loop has it.

        Args:
            inputs: `(N, D)`; N is B, or several times B where as many rows on end belong to each source.
            state: The state after the step before.
            keys: `(B, S, n)`, what `attention.keys(source)` returned.
            source: `(B, S, M)`.
            source_mask: Optional bool `(B, S)`.

        Returns:
            The new state, and the weights of the source's positions, float32 `(N, S)`.
        """
        h, (_, c) = self.cell(tf.concat([inputs, state.context], -1), [state.h, state.c])
        queries = tf.reshape(h, [tf.shape(keys)[0], -1, h.shape[-1]])
        context, weights = self.attention.attend(queries, keys, source, source_mask)
        context = tf.reshape(context, tf.shape(state.context))
        return AttentiveState(h, c, context), tf.reshape(weights, tf.stack([tf.shape(h)[0], tf.shape(weights)[-1]]))

    def compute_mask(self, inputs, mask=None):
        return mask, mask

    def compute_output_shape(self, inputs_shape, source_shape):
        times = inputs_shape[:-1]
        return (*times, self.cell.output_size), (*times, source_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "projection": self.projection,
            "attention_units": self.attention_units,
            "score": self.score,
            **frozen_config(self, self._parts(), self._frozen),
        }

    @classmethod
    def from_config(cls, config):
        config, frozen = without_frozen(config)
        layer = cls(**config)
        layer._frozen = frozen
        return layer
