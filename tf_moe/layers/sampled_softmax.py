"""A softmax over a large vocabulary that trains on a sample of it."""

import contextvars
import math
import weakref

import keras
import tensorflow as tf

from tf_moe import checks
from tf_moe.initializers import Initializer
from tf_moe.mesh.shards import computed_where, current_shards
from tf_moe.ops.noise import common_seed, uniform

# Set afterwards, a copy or a file would have it, but not the weights, or what draws the sample.
_FIXED = {"vocabulary_size", "kernel_initializer", "bias_initializer", "seed"}

# The attributes of its output by which the loss knows the layer, and a metric the losses.
_LAYER, _LOSSES = "_tf_moe_sampled_softmax", "_tf_moe_sampled_losses"
# The output whose loss is being computed: another one in each thread, and nothing for a model to save.
_output: contextvars.ContextVar[tf.Tensor | None] = contextvars.ContextVar("sampled_softmax", default=None)
# The layer that was last called in training, as long as no loss has got its output: something may have come between.
_missed: contextvars.ContextVar["weakref.ref[SampledSoftmax] | None"] = contextvars.ContextVar("missed", default=None)


@keras.saving.register_keras_serializable(package="tf_moe")
class SampledSoftmax(keras.layers.Layer):
    """Logits over a vocabulary; in training, the input of a `SampledSoftmaxLoss`, which computes few of them.

    At evaluation and in `predict` it is a dense layer, `x kernel^T + bias`. In training it returns its input
    unchanged, and the loss computes only the logits of the targets and of a sample of the vocabulary. So losses are
    estimates in training, exact at evaluation. Do not compile with metrics of logits, such as accuracy: they get none
    in training. `tf_moe.models.Perplexity` then uses the loss's estimates. The layer must be the model's last; another
    loss would train none of its weights.

    Weights: `kernel` `(V, D)`, a row for each word, and `bias` `(V,)`.

    Args:
        vocabulary_size: Number of words V. Where words are drawn by rank, word 0 is the most frequent.
        num_sampled: Number of words drawn in a step, the same for all its tokens. Default 8192.
        sampling: "log_uniform", by rank, as frequencies of words fall (Zipf's law): p(r) is proportional to
            log(1 + 1 / (r + 1)); or "uniform". Default "log_uniform".
        kernel_initializer: Initializer of `kernel`. Default "glorot_uniform".
        bias_initializer: Default "zeros".
        seed: Integer seed of the sample, or None for a different one in every program.
        **kwargs: Arguments of `keras.layers.Layer`. Logits are float32 by default, under any dtype policy.

    Raises:
        ValueError: If a size is not positive, sampling unknown, `seed` no integer, or inputs not floating point or of
            another width than before.

    Call arguments:
        inputs: `(..., D)`.

    Example:

    ```python
    model = keras.Sequential([keras.layers.Embedding(10_000, 8), tf_moe.layers.SampledSoftmax(10_000)])
    model.compile("adam", tf_moe.layers.SampledSoftmaxLoss())
    model.fit(tokens[:, :-1], tokens[:, 1:])
    ```

    Reference: appendix C.1 of Shazeer et al. (2017); Bengio and Senecal (2003), Quick training of probabilistic neural
    nets by importance sampling; Jozefowicz et al. (2016), section 3.1.
    """

    num_sampled = checks.Checked(checks.integer)
    sampling = checks.Checked(checks.one_of, ("log_uniform", "uniform"))

    def __init__(
        self,
        vocabulary_size: int,
        num_sampled: int = 8192,
        sampling: str = "log_uniform",
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        seed: int | None = None,
        **kwargs,
    ):
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.sampling = sampling
        self.vocabulary_size = checks.integer("vocabulary_size", vocabulary_size)
        self.num_sampled = num_sampled
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.seed = checks.seed(seed)
        self.seed_generator = keras.random.SeedGenerator(self.seed)
        self.input_spec = keras.layers.InputSpec(min_ndim=1)
        self.supports_masking = True
        self.is_made = True

    def __setattr__(self, name, value):
        checks.not_fixed(self, name, value, _FIXED)
        super().__setattr__(name, value)

    def build(self, input_shape):
        shape = (self.vocabulary_size, input_shape[-1])
        self.input_spec = keras.layers.InputSpec(min_ndim=1, axes={-1: input_shape[-1]})
        self.kernel = self.add_weight(shape=shape, initializer=self.kernel_initializer, name="kernel")
        self.bias = self.add_weight(shape=shape[:1], initializer=self.bias_initializer, name="bias")

    def call(self, inputs, training=False):
        checks.floating("SampledSoftmax", inputs)
        if checks.training(training):
            outputs = tf.identity(inputs)
            setattr(outputs, _LAYER, self)  # as Keras leaves a mask on a tensor, for the loss to find
            _missed.set(weakref.ref(self))
            return outputs
        _missed.set(None)
        return _products(inputs, tf.convert_to_tensor(self.kernel)) + self.bias

    def sampled_loss(self, targets: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
        """Cross-entropy of each target against a sample: int32 `(...)` and floats `(..., D)` -> floats `(...)`.

        The softmax's denominator is the target's term, and of the other words' those in the sample, each divided by
        how often its word is to be expected there: an estimate without bias.
        """
        with computed_where(self.kernel):
            sample = self._draw()
            # Read whole: a gather of a variable would make every later read copy it.
            kernel, bias = tf.convert_to_tensor(self.kernel), tf.convert_to_tensor(self.bias)

            def rows(weight, words):
                """In the dtype of the loss, which need not be that of the layer."""
                return tf.cast(tf.gather(weight, words), inputs.dtype)

            logits = _products(inputs, rows(kernel, sample))
            logits += rows(bias, sample) - tf.cast(self._log_expected(sample), inputs.dtype)
            logits = tf.where(tf.equal(tf.expand_dims(targets, -1), sample), -1e30, logits)
            target = tf.reduce_sum(inputs * rows(kernel, targets), axis=-1) + rows(bias, targets)
        logits = tf.concat([tf.expand_dims(target, -1), logits], axis=-1)
        return tf.reduce_logsumexp(logits, axis=-1) - target

    def _draw(self):
        """Words of this step's sample, `(num_sampled,)`, with repetitions."""
        seed = common_seed(self.seed_generator)
        # Float32 numbers are multiples of 2^-23, fewer than there may be words: others are the digits that follow.
        numbers, digits = tf.unstack(tf.cast(uniform([2, self.num_sampled], seed, current_shards()), tf.float64))
        numbers += digits * 2.0**-23
        if self.sampling == "log_uniform":
            words = tf.exp(numbers * math.log(self.vocabulary_size + 1)) - 1
        else:
            words = numbers * self.vocabulary_size
        return tf.minimum(tf.cast(words, tf.int32), self.vocabulary_size - 1)

    def _log_expected(self, words):
        """Logarithm of how often each of these words is to be expected in a sample."""
        rank = tf.cast(words, tf.float32)
        if self.sampling == "uniform":
            return tf.zeros_like(rank) + math.log(self.num_sampled / self.vocabulary_size)
        return tf.math.log(tf.math.log1p(1 / (rank + 1)) * (self.num_sampled / math.log(self.vocabulary_size + 1)))

    def compute_output_spec(self, inputs, training=False):
        checks.floating("SampledSoftmax", inputs)
        width = inputs.shape[-1] if training else self.vocabulary_size
        return keras.KerasTensor((*inputs.shape[:-1], width), dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "num_sampled": self.num_sampled,
            "sampling": self.sampling,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "seed": self.seed,
        }


def _products(inputs, rows):
    """`(..., D)` and `(N, D)` -> `(..., N)`. Flat: DTensor has no gradient of a product that broadcasts."""
    width, size = rows.shape[-1], rows.shape[0]
    static = inputs.shape.is_fully_defined()
    flat = tf.matmul(tf.reshape(inputs, [-1, width]), rows, transpose_b=True)
    shape = [*inputs.shape[:-1], size] if static else tf.concat([tf.shape(inputs)[:-1], [size]], 0)
    return tf.ensure_shape(tf.reshape(flat, shape), [*inputs.shape[:-1], size])


def _check_nothing_between(y_pred):
    """Raise ValueError if predictions are no logits, but something made of what the layer returned in training."""
    layer = _missed.get() and _missed.get()()
    if layer is not None and y_pred.shape[-1] == layer.kernel.shape[1] != layer.vocabulary_size:
        raise ValueError(
            "SampledSoftmaxLoss needs what SampledSoftmax returned, as it is: the layer must be the model's last, not "
            "inside of another such as TimeDistributed, which it does not need. Received: predictions of shape "
            f"{y_pred.shape}, made of the output of {layer.name!r}, or of something else of its width."
        )


def sampled_losses(y_pred: tf.Tensor) -> tf.Tensor | None:
    """The losses `(...)` that `SampledSoftmaxLoss` found for what the layer returned in training; None for logits."""
    return getattr(y_pred, _LOSSES, None)


@keras.saving.register_keras_serializable(package="tf_moe")
class SampledSoftmaxLoss(keras.losses.Loss):
    """Cross-entropy of integer targets for a model that ends with a `SampledSoftmax`.

    In training over the layer's sample of the vocabulary, an estimate; otherwise over all of it.

    Args:
        name: Default "sampled_softmax_loss".
        **kwargs: Arguments of `keras.losses.Loss`.

    Call arguments:
        y_true: Integers `(...)`, or `(..., 1)`.
        y_pred: What the layer returned, as it is: `(..., D)` in training, otherwise logits `(..., V)`.

    Raises:
        ValueError: If targets have another shape, or something has come between the layer and the loss.

    Example:

    >>> softmax = tf_moe.layers.SampledSoftmax(1000, num_sampled=20)
    >>> estimate = softmax(tf.ones([4, 8]), training=True)
    >>> tf_moe.layers.SampledSoftmaxLoss()(tf.constant([1, 2, 3, 4]), estimate).shape
    TensorShape([])
    """

    def __init__(self, name: str = "sampled_softmax_loss", **kwargs):
        # In bfloat16, which may be Keras's default, word 257 would be word 256.
        super().__init__(name=name, **{"dtype": "float32", **kwargs})

    def __call__(self, y_true, y_pred, sample_weight=None):
        is_sampled = hasattr(y_pred, _LAYER)
        if not is_sampled:
            _check_nothing_between(y_pred)
        _missed.set(None)
        token = _output.set(y_pred if is_sampled else None)  # Keras's conversions need not keep the attribute
        try:
            return super().__call__(y_true, y_pred, sample_weight)
        finally:
            _output.reset(token)

    def call(self, y_true, y_pred):
        y_true, output = checks.targets(y_true, y_pred), _output.get()
        if output is not None:
            losses = getattr(output, _LAYER).sampled_loss(y_true, y_pred)
            setattr(output, _LOSSES, losses)
            return losses
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)
