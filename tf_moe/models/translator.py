"""The paper's translation model: an encoder, a decoder that attends to it, and mixtures of experts in both."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_moe import checks
from tf_moe.experts.policies import policy_with_parts
from tf_moe.gates import GATES
from tf_moe.initializers import Initializer
from tf_moe.layers import LSTM, AttentiveLSTM, AttentiveState, SparseMoE
from tf_moe.layers.attention import SCORES
from tf_moe.layers.frozen import freeze, frozen_config, without_frozen
from tf_moe.models.beam_search import beam_search
from tf_moe.models.dense import dense_feed_forward
from tf_moe.recurrence.buffers import buffers_for

_ARGUMENTS = (
    "vocabulary_size", "width", "lstm_units", "encoder_layers", "decoder_layers", "num_experts", "expert_hidden", "k",
    "gate", "importance_weight", "load_weight", "dropout", "attention", "start", "end",
)  # fmt: skip
# Arguments of SparseMoE that Translator has itself, or decides on.
_OF_MIXTURE = {
    "num_experts", "expert_hidden", "k", "gate", "importance_weight", "load_weight", "output_activation", "name",
    "dtype",
}  # fmt: skip


class Encoded(NamedTuple):
    """What the decoder needs of a source, computed once.

    Attributes:
        memory: `(B, S, D)`, the encoder's output.
        keys: `(B, S, D)`, what the attention's scores need of it.
        mask: Bool `(B, S)`, False for padding.
    """

    memory: tf.Tensor
    keys: tf.Tensor
    mask: tf.Tensor


class DecoderState(NamedTuple):
    """What one step of the decoder leaves for the next.

    Attributes:
        first: State of the LSTM with the attention.
        others: `(h, c)` of each LSTM above it.
    """

    first: AttentiveState
    others: tuple[tuple[tf.Tensor, tf.Tensor], ...]


@keras.saving.register_keras_serializable(package="tf_moe")
class Translator(keras.Model):
    """The paper's modified GNMT: from a source and the target so far to logits for each next target id.

    ```
    encoder:  embedding, LSTM in both directions, LSTMs, MoE, LSTM
    decoder:  embedding, LSTM with attention, MoE, LSTMs, softmax
    ```

    All layers' inputs and outputs have one width. Each LSTM and mixture has dropout on its output, then its input is
    added. The first encoder layer is two LSTMs, one in each direction, whose outputs are added: together one projection
    of the units of both. The attention is queried with the output of the first decoder LSTM; what it reads is joined to
    that LSTM's input of the next step, and to the inputs of the LSTMs above at the same step. The encoder goes through
    its mixture with all steps at once, and so does the decoder in training; in `translate` the decoder goes step by
    step. Source and target share word pieces and their embedding.

    Id 0 is padding, and masked in source and target; so is `end` in the target, after which nothing is to be learned.
    The output has the target's mask, which Keras's losses and weighted metrics honour.

    Args:
        vocabulary_size: Number of ids V of the shared vocabulary.
        width: Width D of the embedding and of every layer. Default 512.
        lstm_units: Units of each LSTM, projected to the width where they differ. Default 2048.
        encoder_layers: Number of LSTM layers, 2 or more; the mixture is before the last. Default 3.
        decoder_layers: Number of LSTM layers, 2 or more; the mixture is after the first. Default 2.
        num_experts: Number of experts of each of the two mixtures; a pair for two levels; None for a dense layer in the
            place of each. Default 32.
        expert_hidden: Width of an expert's hidden layer, or of the dense layer's. Default 2048.
        k: Number of experts for each position, or a pair; None for a gate that sets it itself. Default 4. Without
            experts it has no meaning.
        gate: Name of the gate, one in `tf_moe.gates.GATES` but "expert_choice": "strictly_balanced", the default and
            the paper's for one pair of languages, or for example "noisy_top_k", the paper's for several, and the one
            for two levels.
        importance_weight: Weight of the importance loss of each mixture. Default None: 0.01, the paper's for
            translation, and 0 for gates that need no such loss.
        load_weight: Weight of the load loss. Default None: the same.
        dropout: Share of activations dropped. Default 0.4.
        attention: "product", the paper's, or "additive", GNMT's; see `tf_moe.layers.Attention`. Default "product".
        output_activation: Activation of each mixture's output. Default "sigmoid", the paper's; "linear" learns more
            quickly.
        embeddings_initializer: Initializer of the embedding. Default None: uniform within 1. With Keras's 0.05 all that
            comes after is small at first, and the attention is late to find its words.
        start: The id that target ids begin with. Default 2, `tf_moe.text.Vocabulary.END`: what a text begins after.
        end: The id that ends a translation. Default 2.
        moe: Further arguments of `SparseMoE` for both mixtures, as a dict. Default none.
        **kwargs: Arguments of `keras.Model`, such as `name` and `dtype`.

    Raises:
        ValueError: If a size is no integer or too small, another argument out of range, or when called: no pair of
            integer ids of rank 2.

    Call arguments:
        inputs: Source ids `(B, S)` and target ids `(B, T)`. Target ids begin with `start`; what is to be learned is the
            same without it, and with `end` after the last. They may be longer by an `end` where others of the batch
            are: from there on they are masked.
        training: Whether there are dropout, noise and balance losses.

    Returns:
        Float32 logits `(B, T, V)` under any dtype policy.

    Example:

    ```python
    model = tf_moe.models.Translator(50, width=8, lstm_units=32, encoder_layers=2, num_experts=4, expert_hidden=16)
    model.compile("adam", tf_moe.models.SmoothedCrossentropy(0.1), weighted_metrics=[tf_moe.models.Perplexity()])
    source = tokens
    target = np.pad(tokens, [[0, 0], [1, 1]], constant_values=2)  # start, words, end; then zeros, if there is room
    model.evaluate((source, target[:, :-1]), target[:, 1:])  # `fit` takes the same
    ids, scores = model.translate(source, beam_size=4, max_length=12)
    ```

    Reference: appendices E and G of Shazeer et al. (2017); Wu et al. (2016), Google's Neural Machine Translation
    System.
    """

    def __init__(
        self,
        vocabulary_size: int,
        width: int = 512,
        lstm_units: int = 2048,
        encoder_layers: int = 3,
        decoder_layers: int = 2,
        num_experts: int | tuple[int, int] | None = 32,
        expert_hidden: int = 2048,
        k: int | tuple[int, int] | None = 4,
        gate: str = "strictly_balanced",
        importance_weight: float | None = None,
        load_weight: float | None = None,
        dropout: float = 0.4,
        attention: str = "product",
        output_activation: str | Callable | None = "sigmoid",
        embeddings_initializer: Initializer | None = None,
        start: int = 2,
        end: int = 2,
        moe: dict[str, Any] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.autocast = False  # which would make integers of ids that are none
        self.vocabulary_size = checks.integer("vocabulary_size", vocabulary_size)
        self.width = checks.integer("width", width)
        self.lstm_units = checks.integer("lstm_units", lstm_units)
        self.encoder_layers = checks.integer("encoder_layers", encoder_layers, least=2)
        self.decoder_layers = checks.integer("decoder_layers", decoder_layers, least=2)
        self.start, self.end = self._checked_id("start", start), self._checked_id("end", end)
        self.dropout = checks.zero_to_one("dropout", dropout)
        moe = _checked_moe(moe)
        self.moe = dict(moe)
        self.attention = checks.one_of("attention", attention, SCORES)
        self.gate = _checked_gate(gate)
        # Pairs are lists in a config that was a file.
        self.num_experts, self.k = (tuple(x) if isinstance(x, list) else x for x in (num_experts, k))
        self.expert_hidden = expert_hidden
        importance_weight = _default_balance_weight(gate) if importance_weight is None else importance_weight
        load_weight = _default_balance_weight(gate) if load_weight is None else load_weight
        self.importance_weight = checks.at_least_zero("importance_weight", importance_weight)
        self.load_weight = checks.at_least_zero("load_weight", load_weight)
        self.output_activation = keras.activations.get(output_activation)
        if embeddings_initializer is None:
            embeddings_initializer = keras.initializers.RandomUniform(-1.0, 1.0)
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        policy = self.dtype_policy
        projection = None if self.lstm_units == self.width else self.width

        def lstm(name, **options):
            return LSTM(self.lstm_units, projection, return_sequences=True, name=name, dtype=policy, **options)

        def mixture(name):
            if self.num_experts is None:
                return dense_feed_forward([expert_hidden], self.width, "relu", output_activation, name, policy)
            return SparseMoE(
                self.num_experts,
                self.expert_hidden,
                k=self.k,
                gate=self.gate,
                importance_weight=self.importance_weight,
                load_weight=self.load_weight,
                output_activation=output_activation,
                name=name,
                dtype=policy,
                **moe,
            )

        self.embedding = keras.layers.Embedding(
            self.vocabulary_size, self.width, self.embeddings_initializer, name="embedding", dtype=policy
        )
        self.dropout_layer = keras.layers.Dropout(self.dropout, name="dropout", dtype=policy)
        self.encoder_forward = lstm("encoder_lstm_1_forward")
        self.encoder_backward = lstm("encoder_lstm_1_backward", go_backwards=True)
        *between, last = [lstm(f"encoder_lstm_{n}") for n in range(2, self.encoder_layers + 1)]
        self.encoder_upper = [*between, mixture("encoder_moe"), last]
        self.decoder_first = AttentiveLSTM(
            self.lstm_units, projection, score=attention, name="decoder_lstm_1", dtype=policy
        )
        self.decoder_moe = mixture("decoder_moe")
        self.decoder_upper = [lstm(f"decoder_lstm_{n}") for n in range(2, self.decoder_layers + 1)]
        # Logits in float32 under any dtype policy: a softmax over a vocabulary does not do with bfloat16.
        full = "float32"
        if isinstance(policy, keras.dtype_policies.DTypePolicyMap):  # what was quantized, see get_config
            full = keras.dtype_policies.DTypePolicyMap(full, dict(policy))
        self.softmax = keras.layers.Dense(self.vocabulary_size, dtype=full, name="softmax")
        self.supports_masking = True
        self._forget_searches()
        # Everything is known already; and shapes that are open here are open in what is exported.
        self.build(((None, None), (None, None)))
        freeze(self, self._parts())

    def _checked_id(self, name: str, value: int) -> int:
        value = checks.integer(name, value)
        if value >= self.vocabulary_size:
            raise ValueError(
                f"{name} must be an id, under vocabulary_size={self.vocabulary_size}. Received: {name}={value}."
            )
        return value

    def build(self, input_shape):
        x = (None, None, self.width)
        self.embedding.build((None, None))
        for layer in (self.encoder_forward, self.encoder_backward, *self.encoder_upper, self.decoder_moe, self.softmax):
            layer.build(x)
        self.decoder_first.build(x, x)
        for layer in self.decoder_upper:
            layer.build((None, None, 2 * self.width))

    def _parts(self) -> dict[str, keras.layers.Layer]:
        """All layers inside that have weights, by their paths there."""
        parts = (part for part in self._flatten_layers(include_self=False) if part.weights)
        return {part.path.removeprefix(f"{self.path}/"): part for part in parts}

    @property
    def input_dtype(self):
        return "int32"  # which Keras gives the inputs of what it exports

    def call(self, inputs, training=False):
        source_ids, target_ids = _checked(inputs)
        encoded = self.encode(source_ids, training)
        mask = self._target_mask(target_ids)
        x = self.dropout_layer(self.embedding(target_ids), training=training)
        y, context = self.decoder_first(x, encoded.memory, inputs_mask=mask, source_mask=encoded.mask)
        x += self.dropout_layer(y, training=training)
        x += self.dropout_layer(self.decoder_moe(x, mask=mask, training=training), training=training)
        for layer in self.decoder_upper:
            y = layer(tf.concat([x, context], -1), mask=mask, training=training)
            x += self.dropout_layer(y, training=training)
        return self.softmax(x)

    def encode(self, source_ids: tf.Tensor, training: bool = False) -> Encoded:
        """What the decoder needs of source ids `(B, S)`."""
        mask = keras.ops.not_equal(source_ids, 0)
        x = self.dropout_layer(self.embedding(source_ids), training=training)
        y = self.encoder_forward(x, mask=mask, training=training)
        y += self._reversed(self.encoder_backward(x, mask=mask, training=training))
        x += self.dropout_layer(y, training=training)
        for layer in self.encoder_upper:
            x += self.dropout_layer(layer(x, mask=mask, training=training), training=training)
        return Encoded(x, self.decoder_first.attention.keys(x), mask)

    def _reversed(self, x):
        """The steps of x (B, S, D) in reverse order."""
        buffers = buffers_for(self.encoder_backward.cell.recurrent_kernel)
        return tf.transpose(buffers.reverse(tf.transpose(x, [1, 0, 2])), [1, 0, 2])

    def initial_state(self, rows: int | tf.Tensor) -> DecoderState:
        """The decoder's state before the first step: zeros."""
        others = tuple(
            tuple(tf.zeros([rows, size], self.compute_dtype) for size in layer.cell.state_size)
            for layer in self.decoder_upper
        )
        return DecoderState(self.decoder_first.initial_state(rows), others)

    def step(self, ids: tf.Tensor, state: DecoderState, encoded: Encoded) -> tuple[tf.Tensor, tf.Tensor, DecoderState]:
        """One step of the decoder: the logits that the model has there.

        Args:
            ids: Int `(N,)`, the newest target ids: `start` at first. N is the number of sources, or several times it
                where as many rows on end belong to each source. What comes of padding, 0, means nothing.
            state: What `initial_state` or the step before returned.
            encoded: What `encode` returned for the sources.

        Returns:
            Logits `(N, V)`, the attention's weights `(N, S)`, and the state after the step.
        """
        x = self.embedding(ids)
        first, weights = self.decoder_first.step(x, state.first, encoded.keys, encoded.memory, encoded.mask)
        x += first.h
        # With time, since the dense twin knows sequences only; without padding, which would take room in experts.
        mask = tf.expand_dims(tf.not_equal(ids, 0), 1)
        x += tf.squeeze(self.decoder_moe(tf.expand_dims(x, 1), mask=mask), 1)
        others = []
        for layer, old in zip(self.decoder_upper, state.others, strict=True):
            y, new = layer.cell(tf.concat([x, first.context], -1), list(old))
            x += y
            others.append(tuple(new))
        return self.softmax(x), weights, DecoderState(first, tuple(others))

    def translate(
        self,
        source_ids: tf.Tensor,
        beam_size: int = 4,
        max_length: int = 128,
        length_penalty: float = 0.6,
        coverage_penalty: float = 0.2,
        num_best: int | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The best translations that a beam search finds; a beam of 1 is greedy.

        Compiled once, for any batch and length, for each set of the other arguments; may be called in a `tf.function`,
        and exported as one. A translation does not depend on the others of the batch, but where `moe` gives experts a
        capacity, which all share. Not for a model on a mesh: give its weights to one on a single device.

        Args:
            source_ids: Int `(B, S)`, zeros for padding; or a ragged tensor, as `tf_moe.text.Pieces.encode` returns.
            beam_size: Number of hypotheses for each source. Default 4.
            max_length: Largest number of ids of a translation, the end included. Default 128.
            length_penalty: See `tf_moe.models.beam_search`. Default 0.6.
            coverage_penalty: The same. Default 0.2.
            num_best: Number n of translations of each source, the best first, at most `beam_size`. Default None: the
                best alone.

        Returns:
            Ids, int32 `(B, max_length)`: each translation with its `end`, unless it was cut at `max_length`, then
            zeros; and scores, float32 `(B,)`. With `num_best`, `(B, n, max_length)` and `(B, n)`.

        Raises:
            ValueError: If an argument is out of range, or the ids are no integers of rank 2.
        """
        source_ids = tf.cast(_checked_ids("source_ids", source_ids), tf.int32)
        options = {
            "beam_size": checks.integer("beam_size", beam_size),
            "max_length": checks.integer("max_length", max_length),
            "length_penalty": checks.at_least_zero("length_penalty", length_penalty),
            "coverage_penalty": checks.at_least_zero("coverage_penalty", coverage_penalty),
            "num_best": None if num_best is None else checks.integer("num_best", num_best),
        }
        search = self._search.get_concrete_function(tf.TensorSpec([None, None], tf.int32), **options)
        return search(source_ids)

    def quantize(self, *args, **kwargs):
        """`keras.Model.quantize`; `translate` is compiled again, or it would keep the weights that were."""
        super().quantize(*args, **kwargs)
        self._forget_searches()

    def compile(self, *args, **kwargs):
        """`keras.Model.compile`; `translate` is compiled again, as after `enable_lora` it has to be."""
        super().compile(*args, **kwargs)
        self._forget_searches()

    def _forget_searches(self):
        self._search = tf.function(self._find_translations, autograph=False)

    def _find_translations(self, source_ids, **options):
        encoded = self.encode(source_ids)
        batch = tf.shape(source_ids)[0]

        def step(ids, state):
            def rows(x):
                return tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0))

            def beams(x):
                return tf.reshape(x, tf.concat([tf.shape(ids), tf.shape(x)[1:]], 0))

            logits, weights, new = self.step(rows(ids), tf.nest.map_structure(rows, state), encoded)
            new = tf.nest.map_structure(lambda x, old: tf.ensure_shape(beams(x), old.shape), new, state)
            return tf.nn.log_softmax(beams(logits)), beams(weights), new

        state = self.initial_state(batch)
        return beam_search(step, state, batch, start=self.start, end=self.end, source_mask=encoded.mask, **options)

    def compute_mask(self, inputs, mask=None):
        return self._target_mask(inputs[1])

    def _target_mask(self, ids):
        """Where something follows: not after padding, and not after the end, with which a text may also begin."""
        first = keras.ops.equal(keras.ops.cumsum(keras.ops.ones_like(ids), axis=1), 1)
        goes_on = keras.ops.logical_or(first, keras.ops.not_equal(ids, self.end))
        return keras.ops.logical_and(goes_on, keras.ops.not_equal(ids, 0))

    def get_config(self):
        quantized = [part for part in self._parts().values() if part.quantization_mode is not None]
        return {
            **super().get_config(),
            "dtype": keras.dtype_policies.serialize(policy_with_parts(self, quantized)),
            **{name: getattr(self, name) for name in _ARGUMENTS},
            "output_activation": keras.activations.serialize(self.output_activation),
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
            "moe": dict(self.moe),
            **frozen_config(self, self._parts()),
        }

    @classmethod
    def from_config(cls, config):
        config, frozen = without_frozen(config)
        model = cls(**config)
        freeze(model, model._parts(), frozen)
        return model


def _checked_moe(moe: dict | None) -> dict:
    if moe is not None and not isinstance(moe, dict):
        raise ValueError(f"moe must be a dict of arguments of SparseMoE, or None. Received: moe={moe!r}.")
    if "expert" in (moe or {}):
        raise ValueError(
            "The mixtures of Translator have the built-in experts: others could not be loaded with the model. "
            f"Received: moe={moe!r}."
        )
    if taken := sorted({*(moe or {})} & _OF_MIXTURE):
        raise ValueError(f"Pass {', '.join(taken)} to Translator itself. Received: moe={moe!r}.")
    return dict(moe or {})


def _checked_gate(gate: str) -> str:
    if not isinstance(gate, str):
        raise ValueError(f"gate must be a name, of which each mixture makes a gate. Received: gate={gate!r}.")
    if gate == "expert_choice":
        raise ValueError(
            "The experts of gate='expert_choice' choose among all words of a target, and a decoder must not know "
            "those to come. Pass another gate, such as 'noisy_top_k'."
        )
    return gate


def _default_balance_weight(gate: str) -> float:
    """Of each balance loss: the paper's for translation, or 0; an unknown gate is left to the layer to refuse."""
    needs_loss = gate not in GATES or GATES[gate].balance_weight > 0
    return 0.01 if needs_loss else 0.0


def _checked(inputs):
    if not isinstance(inputs, (tuple, list)) or len(inputs) != 2:
        raise ValueError(f"Translator needs a pair, (source_ids, target_ids). Received: {inputs!r}.")
    return tuple(_checked_ids(name, x) for name, x in zip(("source_ids", "target_ids"), inputs, strict=True))


def _checked_ids(name, ids):
    if isinstance(ids, tf.RaggedTensor):  # what word pieces are
        ids = ids.to_tensor()
    ids = keras.ops.convert_to_tensor(ids)
    if len(ids.shape) != 2 or not tf.as_dtype(ids.dtype).is_integer:
        raise ValueError(
            f"{name} must be integers (batch, time). Received: {name} {tf.as_dtype(ids.dtype).name} {tuple(ids.shape)}."
        )
    return ids
