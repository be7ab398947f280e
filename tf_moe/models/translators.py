"""The translation models of the paper by their names, and what each costs."""

import dataclasses

from tf_moe import checks
from tf_moe.models.sizes import lstm_weights, mixture_numbers
from tf_moe.models.translator import Translator


@dataclasses.dataclass(frozen=True)
class TranslationNetwork:
    """One of the paper's translation models: its shape, without any weights. See `Translator` for what is what.

    Attributes:
        name: As in the paper's appendix E.
        width: Width of the embedding and of every layer's output.
        lstm_units: Units of each LSTM, projected to `width` where they differ.
        encoder_layers: Number of LSTM layers of the encoder; the first has two LSTMs.
        decoder_layers: Number of LSTM layers of the decoder.
        num_experts: Number of experts of each of the two mixtures, a pair for two levels, or None for a dense layer.
        k: Number of experts for each position, a pair for two levels, or None.
        expert_hidden: Width of an expert's hidden layer, or of the dense layer's.
        gate: Name of the gate, or None without experts. The paper has the strictly balanced one for all single pairs of
            languages; here that gate has one level, and two levels have noisy top-k.
        dropout: Share of each layer's output dropped in training.

    Example:

    >>> network = tf_moe.models.TRANSLATORS["MoE-2048-h"]
    >>> round(network.parameters / 1e9, 2), round(network.ops_per_timestep / 1e6, 1)
    (8.66, 82.6)
    >>> model = network.scaled(width=8).build(vocabulary_size=1000)

    Reference: appendix E, tables 2 to 5, of Shazeer et al. (2017).
    """

    name: str
    width: int = 512
    lstm_units: int = 2048
    encoder_layers: int = 3
    decoder_layers: int = 2
    num_experts: int | tuple[int, int] | None = 32
    k: int | tuple[int, int] | None = 4
    expert_hidden: int = 2048
    gate: str | None = "strictly_balanced"
    dropout: float = 0.4

    @property
    def parameters(self) -> int:
        """Number of weights without embedding, softmax and biases, as the paper counts them."""
        numbers = mixture_numbers(self.num_experts, self.k)
        gate = self._gate_matrices * self.width * numbers.gate_columns
        return self._recurrent + 2 * (numbers.experts * self._expert + gate)

    @property
    def ops_per_timestep(self) -> int:
        """Multiply-adds of the forward pass for one source and one target id, as the paper counts them.

        Without embedding and softmax, and without the attention's scores and contexts, which grow with the source. The
        paper does not say what it counts here; its 85 and 102 million come out within 3%.
        """
        return self._recurrent + 2 * self._mixture

    @property
    def _recurrent(self) -> int:
        """Of all LSTMs and the attention's two matrices: weights, each used once."""
        encoder = (self.encoder_layers + 1) * lstm_weights(self.width, self.lstm_units, self.width)
        # What goes into the decoder's is joined with what the attention read.
        decoder = self.decoder_layers * lstm_weights(2 * self.width, self.lstm_units, self.width)
        return encoder + decoder + 2 * self.width**2

    @property
    def _expert(self) -> int:
        return 2 * self.width * self.expert_hidden

    @property
    def _gate_matrices(self) -> int:
        # W_g, and W_noise where there is noise.
        return {"noisy_top_k": 2, "hierarchical": 2, "hash": 0}.get(self.gate, 1)

    @property
    def _mixture(self) -> int:
        """Multiply-adds of one mixture, gate included, for one position."""
        numbers = mixture_numbers(self.num_experts, self.k)
        return numbers.chosen * self._expert + self._gate_matrices * self.width * numbers.logits

    def scaled(self, width: int) -> "TranslationNetwork":
        """The same network at another width: all widths in proportion, experts as many.

        Raises:
            ValueError: If `width` is no positive integer.
        """
        width = checks.integer("width", width)

        def scale(size):
            return max(1, round(size * width / self.width))

        sizes = {"lstm_units": scale(self.lstm_units), "expert_hidden": scale(self.expert_hidden)}
        return dataclasses.replace(self, width=width, **sizes)

    def dense_twin(self) -> "TranslationNetwork":
        """The network with a dense layer of the same arithmetic, gate included, in the place of each mixture.

        Raises:
            ValueError: If the network has no mixture.
        """
        if self.num_experts is None:
            raise ValueError(f"{self.name} has no mixture of experts. Received: dense_twin().")
        dense = {"num_experts": None, "k": None, "gate": None, "expert_hidden": self._mixture // (2 * self.width)}
        return dataclasses.replace(self, name=f"{self.name}-dense", **dense)

    def build(self, vocabulary_size: int, **arguments) -> Translator:
        """A new model of this shape.

        Args:
            vocabulary_size: Number of ids.
            **arguments: Others of `Translator`, or to change it: `start`, `dropout`, `moe` and so on.

        Raises:
            ValueError: If an argument is out of range.
        """
        shape = dataclasses.asdict(self)
        if self.num_experts is None:
            del shape["k"], shape["gate"]
        return Translator(vocabulary_size, **{**shape, **arguments})


TRANSLATORS = {
    network.name: network
    for network in (
        TranslationNetwork("MoE-32"),
        TranslationNetwork("MoE-512-h", num_experts=(16, 32), k=(2, 2), gate="noisy_top_k"),
        TranslationNetwork("MoE-2048-h", num_experts=(32, 64), k=(2, 2), gate="noisy_top_k"),
        TranslationNetwork("multilingual-512", num_experts=512, k=2, expert_hidden=8192, gate="noisy_top_k"),
    )
}
"""The paper's translation models by their names.

Example:

>>> list(tf_moe.models.TRANSLATORS)
['MoE-32', 'MoE-512-h', 'MoE-2048-h', 'multilingual-512']
"""
