"""Attention between the positions of two sequences: the paper's multiplicative one, and GNMT's additive one."""

import keras
import tensorflow as tf

from tf_moe import checks
from tf_moe.initializers import Initializer, of_stream

SCORES = ("product", "additive")

# Set afterwards, a copy or a file would have it, but not the weights, or not the layer that this one is part of.
_FIXED = {"units", "score", "kernel_initializer"}


@keras.saving.register_keras_serializable(package="tf_moe")
class Attention(keras.layers.Layer):
    """Attention of queries y_j to a source x_i, by a hidden layer of n units.

    ```
    product:   A(x_i, y_j) = sum_d V_d tanh((x_i U)_d) tanh((y_j W)_d)
    additive:  A(x_i, y_j) = sum_d V_d tanh((x_i U)_d + (y_j W)_d)
    context_j = sum_i softmax_i(A(x_i, y_j)) x_i
    ```

    The first is one matrix product for all i and j; the second needs n numbers for each pair of positions, in time and
    in memory. The softmax is over the unmasked source positions, in float32 under any dtype policy but float64; where
    none is unmasked, weights and context are zero.

    Weights: `source_kernel` U `(Dx, n)`, `query_kernel` W `(Dy, n)`, `scale` V `(n,)`.

    Args:
        units: Width n of the hidden layer.
        score: "product", the paper's, or "additive", GNMT's. Default "product".
        kernel_initializer: Initializer of all three weights, so one that can fill a vector too. Default
            "glorot_uniform".
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If `units` is no positive integer, `score` unknown, or when called: an input that is not floating
            point of rank 3, or a mask that is not of the source's positions.

    Call arguments:
        queries: `(B, T, Dy)`.
        source: `(B, S, Dx)`.
        source_mask: Optional bool `(B, S)`. By default the source's Keras mask, if it has one.
        return_weights: Whether to return the weights too. Default False.

    Returns:
        The context `(B, T, Dx)` in the compute dtype, or a tuple of it and the weights `(B, T, S)` in float32.

    Example:

    >>> attention = tf_moe.layers.Attention(16)
    >>> attention(tf.zeros([2, 5, 8]), tf.zeros([2, 7, 4])).shape
    TensorShape([2, 5, 4])

    For one step at a time, compute what the source contributes once:

    >>> query, source = tf.zeros([2, 1, 8]), tf.zeros([2, 7, 4])  # one query, or several at a time
    >>> keys = attention.keys(source)
    >>> context, weights = attention.attend(query, keys, source)

    Reference: appendix G of Shazeer et al. (2017); Wu et al. (2016), Google's Neural Machine Translation System,
    section 3; Bahdanau et al. (2015).
    """

    def __init__(
        self, units: int, score: str = "product", kernel_initializer: Initializer = "glorot_uniform", **kwargs
    ):
        super().__init__(**kwargs)
        self.score = checks.one_of("score", score, SCORES)
        self.units = checks.integer("units", units)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True
        self.is_made = True

    def __setattr__(self, name, value):
        checks.not_fixed(self, name, value, _FIXED)
        super().__setattr__(name, value)

    def build(self, queries_shape, source_shape):
        for name, shape in (("queries", queries_shape), ("source", source_shape)):
            checks.sequences(name, shape)

        def add(name, stream, *shape):
            return self.add_weight(shape=shape, initializer=of_stream(self.kernel_initializer, stream), name=name)

        self.source_kernel = add("source_kernel", 0, source_shape[-1], self.units)
        self.query_kernel = add("query_kernel", 1, queries_shape[-1], self.units)
        self.scale = add("scale", 2, self.units)

    def call(self, queries, source, source_mask=None, return_weights=False):
        for name, x, kernel in (("queries", queries, self.query_kernel), ("source", source, self.source_kernel)):
            checks.floating("Attention", x)
            checks.sequences(name, x.shape, kernel.shape[0])
        checks.same_batch(queries=queries, source=source)
        if source_mask is not None:
            source_mask = checks.mask(source_mask, source)
        context, weights = self.attend(queries, self.keys(source), source, source_mask)
        return (context, weights) if return_weights else context

    def keys(self, source: tf.Tensor) -> tf.Tensor:
        """What the scores need of a source `(B, S, Dx)`, whatever the queries: `(B, S, n)`."""
        keys = tf.einsum("bsd,dn->bsn", self._cast(source), self._cast(self.source_kernel))
        return tf.tanh(keys) if self.score == "product" else keys

    def attend(
        self, queries: tf.Tensor, keys: tf.Tensor, source: tf.Tensor, source_mask: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The context `(B, T, Dx)` and the weights `(B, T, S)` for queries `(B, T, Dy)` and the keys of a source."""
        q = tf.einsum("btd,dn->btn", self._cast(queries), self._cast(self.query_kernel))
        scale = self._cast(self.scale)
        if self.score == "product":
            scores = tf.einsum("btn,bsn->bts", scale * tf.tanh(q), keys)
        else:
            pairs = tf.tanh(tf.expand_dims(q, 2) + tf.expand_dims(keys, 1))
            scores = tf.reduce_sum(scale * pairs, -1)
        weights = masked_softmax(scores, None if source_mask is None else tf.expand_dims(source_mask, 1))
        return tf.einsum("bts,bsd->btd", self._cast(weights), self._cast(source)), weights

    def _cast(self, x):
        """In the compute dtype, weights too: Keras casts them where a layer is called, and nowhere else."""
        return tf.cast(tf.convert_to_tensor(x), self.compute_dtype)

    def compute_output_shape(self, queries_shape, source_shape):
        return (*queries_shape[:-1], source_shape[-1])

    def compute_output_spec(self, queries, source, source_mask=None, return_weights=False):
        shape = self.compute_output_shape(queries.shape, source.shape)
        context = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if not return_weights:
            return context
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        return context, keras.KerasTensor((*queries.shape[:-1], source.shape[1]), dtype=dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "score": self.score,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def masked_softmax(scores: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """Softmax over the last axis in float32 (float64 stays), zero where the mask is False, also where all of it is."""
    if scores.dtype != tf.float64:
        scores = tf.cast(scores, tf.float32)
    if mask is None:
        return tf.nn.softmax(scores)
    weights = tf.nn.softmax(tf.where(mask, scores, scores.dtype.min))
    return tf.where(mask, weights, tf.zeros_like(weights))
