"""The paper's recurrent language model, with a mixture of experts between its LSTMs or a dense layer in its place."""

import keras

from tf_moe import checks
from tf_moe.gates.cost import multiply_adds
from tf_moe.layers import LSTM, SparseMoE
from tf_moe.models.dense import dense_feed_forward


def language_model(
    vocabulary_size: int,
    middle: list[keras.layers.Layer],
    width: int = 512,
    dropout: float = 0.1,
    name: str = "language_model",
) -> keras.Model:
    """Embedding, LSTM, `middle`, LSTM, softmax: predicts each next token from the ones before.

    Dropout is applied to every layer's output but the softmax's, and around every layer but the embedding its input is
    added to its output.

    Args:
        vocabulary_size: Number of tokens V; id 0 is padding, and masked.
        middle: Layers between the two LSTMs, each mapping `(batch, time, width)` to the same: `[moe(...)]` for the
            paper's models, `[dense(...)]` for the baseline.
        width: Width of embedding and LSTMs. Default 512, the paper's.
        dropout: Share of activations dropped. Default 0.1, the paper's for models of this size.
        name: Name of the model.

    Returns:
        A functional model from ids `(batch, time)`, any batch and time, to logits `(batch, time, V)`.

    Raises:
        ValueError: If a size is no positive integer, `dropout` not in 0 to 1, or a layer of `middle` does not keep the
            width.
        TypeError: If `middle` is no list of layers.

    Example:

    >>> moe = tf_moe.layers.SparseMoE(16, expert_hidden=32, k=4, output_activation="sigmoid")
    >>> model = tf_moe.models.language_model(1000, [moe], width=16)
    >>> model.output_shape
    (None, None, 1000)

    Reference: appendix C.1 of Shazeer et al. (2017).
    """
    width = checks.integer("width", width)
    first = LSTM(width, return_sequences=True, name="lstm_1")
    last = LSTM(width, return_sequences=True, name="lstm_2")
    _check_layers("middle", middle)
    return residual_language_model(vocabulary_size, [first, *middle, last], width, dropout, name)


def residual_language_model(
    vocabulary_size: int,
    layers: list[keras.layers.Layer],
    width: int = 512,
    dropout: float = 0.1,
    name: str = "language_model",
    softmax: keras.layers.Layer | None = None,
) -> keras.Model:
    """Embedding, any layers, softmax, with the paper's dropout and residual connections: see `language_model`.

    Args:
        vocabulary_size: Number of tokens V; id 0 is padding, and masked.
        layers: All layers between embedding and softmax, each mapping `(batch, time, width)` to the same.
        width: Width of the embedding and of all outputs. Default 512.
        dropout: Share of activations dropped. Default 0.1.
        name: Name of the model.
        softmax: Layer that makes the logits, for large vocabularies `SampledSoftmax(vocabulary_size)`, to be trained
            with `SampledSoftmaxLoss`. Default None: a dense layer.

    Returns:
        A functional model from ids `(batch, time)`, any batch and time, to float32 logits `(batch, time, V)`.

    Raises:
        ValueError: If a size is no positive integer, `dropout` not in 0 to 1, a layer does not keep the width, or
            `softmax` makes other logits.
        TypeError: If `layers` is no list of layers, or `softmax` no layer.

    Example:

    >>> lstm = tf_moe.layers.LSTM(64, projection=16, return_sequences=True)
    >>> model = tf_moe.models.residual_language_model(1000, [lstm], width=16)

    Reference: appendix C.1 of Shazeer et al. (2017); with 2048 units and a width of 512 this
    is its LSTM-2048-512.
    """
    vocabulary_size, width = checks.integer("vocabulary_size", vocabulary_size), checks.integer("width", width)
    checks.zero_to_one("dropout", dropout)
    _check_layers("layers", layers)
    if softmax is not None:
        hint = "Pass a layer such as SampledSoftmax(vocabulary_size), or None."
        checks.instance("softmax", softmax, keras.layers.Layer, hint)
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.Embedding(vocabulary_size, width, mask_zero=True, name="embedding")(ids)
    x = keras.layers.Dropout(dropout)(x)
    for layer in layers:
        x = keras.layers.Add()([x, keras.layers.Dropout(dropout)(layer(x))])
    if softmax is None:
        # Logits in float32 under any dtype policy: a softmax over a vocabulary does not do with bfloat16.
        softmax = keras.layers.Dense(vocabulary_size, dtype="float32", name="softmax")
    logits = softmax(x)
    if logits.shape[-1] != vocabulary_size:
        raise ValueError(
            f"softmax must make {vocabulary_size} logits, one for each token. Received: {softmax.name!r}, which makes "
            f"{logits.shape[-1]}."
        )
    return keras.Model(ids, logits, name=name)


def _check_layers(name: str, layers: list[keras.layers.Layer]) -> None:
    """Raise TypeError unless it is a list of layers."""
    if not isinstance(layers, (list, tuple)) or not all(isinstance(layer, keras.layers.Layer) for layer in layers):
        raise TypeError(f"{name} must be a list of layers, also where it is one. Received: {name}={layers!r}.")


def dense_twin(moe: SparseMoE, width: int, name: str = "dense_twin") -> keras.Sequential:
    """A dense layer of the multiply-adds of a mixture of built-in experts, its gate included.

    The paper's MoE-1-Wide without its gate: one expert as wide as the k chosen ones and the shared one together. What
    the gate's matrices cost pays for more hidden units, at 2 D each: one for each logit of a gate with noise, which has
    two matrices, and one for two logits, rounded up, of a gate with one.

    Args:
        moe: The layer to be equalled.
        width: Width D of its input and output.
        name: Name of the twin.

    Raises:
        ValueError: If the experts of `moe` are Keras layers, whose arithmetic is unknown, or `width` is no positive
            integer.
        TypeError: If `moe` is no SparseMoE.

    Example:

    >>> moe = tf_moe.layers.SparseMoE(num_experts=16, expert_hidden=32, k=4)
    >>> twin = tf_moe.models.dense_twin(moe, width=64)
    >>> twin.layers[0].units  # 4 x 32, and 16 for the gate
    144

    Reference: appendix C.1 of Shazeer et al. (2017).
    """
    checks.instance("moe", moe, SparseMoE, "Pass the layer that the twin is to equal.")
    width = checks.integer("width", width)
    if moe.expert is not None:
        raise ValueError(f"Only built-in experts have a dense twin. Received: {moe.name!r} with expert={moe.expert!r}.")
    gate = type(moe.gate).from_config(moe.gate.get_config())  # the layer may not be built
    gate.build((None, width))
    for_gate = -(-multiply_adds(gate) // (2 * width))
    units = moe.total_k * moe.expert_hidden + (moe.shared_expert_hidden or 0) + for_gate
    return dense_feed_forward([units], width, moe.activation, moe.output_activation, name)
