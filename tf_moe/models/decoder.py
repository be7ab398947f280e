"""One step at a time through a language model, its state carried outside."""

import keras
import tensorflow as tf

from tf_moe.gates import ExpertChoice
from tf_moe.layers import Attention, AttentiveLSTM, SparseMoE

# What sees other steps than its own.
_NOT_STEPWISE = (
    keras.layers.RNN, keras.layers.Bidirectional, keras.layers.Conv1D, keras.layers.SeparableConv1D,
    keras.layers.DepthwiseConv1D, keras.layers.Conv1DTranspose, keras.layers.Attention, keras.layers.AdditiveAttention,
    keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention, Attention, AttentiveLSTM,
    keras.layers.MaxPooling1D, keras.layers.AveragePooling1D,
    keras.layers.GlobalMaxPooling1D, keras.layers.GlobalAveragePooling1D, keras.layers.GroupNormalization,
)  # fmt: skip

State = tuple[tuple[tf.Tensor, ...], ...]


class Decoder:
    """The steps of a model made by `language_model`, one by one: what is needed to continue a text.

    A step costs the same wherever in the text it is; the model itself would compute all that came before again. The
    weights are the model's own.

    Args:
        model: What `language_model`, `residual_language_model` or a `PaperNetwork` built, or what was loaded from such
            a model's file.

    Raises:
        ValueError: If the model is another, or has a layer that needs other steps than its own: an LSTM that is
            stateful or goes backwards, another recurrent layer, a convolution, a pooling, an attention, a normalization
            over steps, a mixture whose experts choose among all steps. Of layers that are not Keras's or this
            library's nothing is known: they must treat each step by itself.

    Example:

    >>> moe = tf_moe.layers.SparseMoE(4, expert_hidden=16, k=2)
    >>> decoder = tf_moe.models.Decoder(tf_moe.models.language_model(50, [moe], width=8))
    >>> state = decoder.initial_state(batch_size=2)
    >>> logits, state = decoder.step(tf.constant([2, 2]), state)  # for the word after the first one
    """

    def __init__(self, model: keras.Model):
        self._embedding, self._layers, self._softmax = _chain(model)
        for layer, _ in self._layers:
            if isinstance(layer, keras.layers.LSTM):
                fault = layer.go_backwards or layer.stateful
            else:
                fault = any(_sees_other_steps(part) for part in layer._flatten_layers())
            if fault:
                raise ValueError(
                    "Decoder goes on step by step, with LSTMs that go forwards and layers that see one step at a time. "
                    f"Received: {layer.name!r}, a {type(layer).__name__}, in the model {model.name!r}."
                )

    def initial_state(self, batch_size: int | tf.Tensor) -> State:
        """The state before the first step: for each LSTM its h `(B, P)` and its cell state `(B, units)`, zeros."""
        recurrent = [layer.cell for layer, _ in self._layers if isinstance(layer, keras.layers.LSTM)]
        return tuple(
            tuple(tf.zeros([batch_size, size], cell.compute_dtype) for size in cell.state_size) for cell in recurrent
        )

    def step(self, ids: tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
        """The next token's logits, as the model has them there, unless a `capacity_factor` drops some.

        Args:
            ids: Int `(B,)`. Where it is 0, padding, the state stays as it was, so that texts of a batch may end apart.
            state: What `initial_state` or the step before returned.

        Returns:
            Logits `(B, V)` and the state after the step.
        """
        counts = tf.expand_dims(tf.not_equal(ids, 0), -1)
        x, states, following = tf.identity(self._embedding(ids)), iter(state), []  # the identity has no Keras mask
        for layer, add in self._layers:
            if isinstance(layer, keras.layers.LSTM):
                old = next(states)
                y, new = layer.cell(x, list(old))
                following.append(tuple(tf.where(counts, *pair) for pair in zip(new, old, strict=True)))
            else:
                # Padding would take room in experts that have a capacity. With time: a model knows sequences only.
                options = {"mask": counts} if isinstance(layer, SparseMoE) else {}
                y = tf.squeeze(layer(tf.expand_dims(x, 1), **options), 1)
            x = add([x, y])  # the model's own, which casts where layers compute in different dtypes
        return self._softmax(x), tuple(following)


def _chain(model: keras.Model) -> tuple[keras.layers.Layer, list[tuple[keras.layers.Layer, ...]], keras.layers.Layer]:
    """The embedding, each layer that is added to its own input, with what adds it, and the softmax.

    Raises:
        ValueError: If the model is not made of these and their dropout alone, each once.
    """
    layers = model.layers
    start = (keras.layers.InputLayer, keras.layers.Embedding, keras.layers.Dropout)
    count = (len(layers) - len(start) - 1) // 3
    kinds = (*start, *(object, keras.layers.Dropout, keras.layers.Add) * count, object)
    if count < 1 or len(layers) != len(kinds) or not all(map(isinstance, layers, kinds)):
        raise ValueError(
            "Decoder needs a model made by tf_moe.models.language_model: an embedding, layers that are each used once, "
            "with dropout, and added to their input, and a softmax. Received: a model of "
            f"{[layer.name for layer in layers]}."
        )
    return layers[1], list(zip(layers[3:-1:3], layers[5:-1:3], strict=True)), layers[-1]


def _sees_other_steps(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, SparseMoE):
        return isinstance(layer.gate, ExpertChoice)
    if isinstance(layer, (keras.layers.LayerNormalization, keras.layers.UnitNormalization)):
        return not {-1, 2}.issuperset(keras.tree.flatten(layer.axis))
    return isinstance(layer, _NOT_STEPWISE)
