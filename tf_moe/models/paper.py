"""The language models of the paper by their names, and what each costs."""

import dataclasses
import itertools

import keras

from tf_moe import checks
from tf_moe.layers import LSTM, SparseMoE
from tf_moe.models.dense import dense_feed_forward
from tf_moe.models.language_model import residual_language_model
from tf_moe.models.sizes import lstm_weights, mixture_numbers


@dataclasses.dataclass(frozen=True)
class PaperNetwork:
    """One of the paper's language models: its shape, without any weights.

    Embedding, an LSTM, the mixture of experts (or one dense expert in its place, or nothing), the other LSTMs, softmax;
    all with the residual connections of `language_model`, also 2xLSTM-8192-1024, which was published without.

    Attributes:
        name: As in the paper's tables.
        width: Width of the embedding and of every layer's output.
        lstm_units: Units of each LSTM, projected to `width` where they differ.
        num_experts: Number of experts, a pair for two levels, or None for no gate.
        k: Number of experts for each position, a pair for two levels, or None.
        expert_hidden: Width of each hidden layer of an expert; with `num_experts` None, of the dense layers in the
            place of the mixture; empty for LSTMs alone.
        dropout: Share of each layer's output dropped in training.

    Example:

    >>> network = tf_moe.models.PAPER["MoE-256"]
    >>> round(network.parameters / 1e6, 1), round(network.ops_per_timestep / 1e6, 2)
    (272.9, 8.65)
    >>> model = network.scaled(width=16).build(vocabulary_size=1000)

    Reference: appendices C and D, tables 1, 7 and 8, of Shazeer et al. (2017).
    """

    name: str
    width: int = 512
    lstm_units: tuple[int, ...] = (512, 512)
    num_experts: int | tuple[int, int] | None = None
    k: int | tuple[int, int] | None = None
    expert_hidden: tuple[int, ...] = ()
    dropout: float = 0.1

    @property
    def parameters(self) -> int:
        """Number of weights without embedding, softmax and biases, as the paper counts them."""
        numbers = mixture_numbers(self.num_experts, self.k)
        return self._lstms + numbers.experts * self._expert + 2 * self.width * numbers.gate_columns  # W_g and W_noise

    @property
    def ops_per_timestep(self) -> int:
        """Multiply-adds of the forward pass for one token without embedding and softmax, as the paper counts them."""
        numbers = mixture_numbers(self.num_experts, self.k)
        return self._lstms + numbers.chosen * self._expert + 2 * self.width * numbers.logits

    @property
    def _lstms(self) -> int:
        return sum(lstm_weights(self.width, units, self.width) for units in self.lstm_units)

    @property
    def _expert(self) -> int:
        if not self.expert_hidden:
            return 0
        widths = (self.width, *self.expert_hidden, self.width)
        return sum(before * after for before, after in itertools.pairwise(widths))

    def scaled(self, width: int) -> "PaperNetwork":
        """The same network at another width: all widths in proportion, experts as many.

        Experts and LSTMs cost the square of the width, a gate the width itself: at an eighth of its width MoE-256 has
        1.25 times the arithmetic of MoE-4, not 1.03 times. `dense_twin` is of equal arithmetic at any width.

        Raises:
            ValueError: If `width` is no positive integer.
        """
        width = checks.integer("width", width)

        def scale(sizes):
            return tuple(max(1, round(size * width / self.width)) for size in sizes)

        return dataclasses.replace(
            self, width=width, lstm_units=scale(self.lstm_units), expert_hidden=scale(self.expert_hidden)
        )

    def dense_twin(self) -> "PaperNetwork":
        """The network with one dense expert of the same arithmetic, gate included, in the place of the mixture.

        Raises:
            ValueError: If the network has no mixture.
        """
        self._check_mixture("dense_twin()")
        spent = self.ops_per_timestep - self._lstms
        return dataclasses.replace(
            self, name=f"{self.name}-dense", num_experts=None, k=None, expert_hidden=(spent // (2 * self.width),)
        )

    def _check_mixture(self, received: str) -> None:
        if self.num_experts is None:
            raise ValueError(f"{self.name} has no mixture of experts. Received: {received}.")

    def middle(self, **arguments) -> list[keras.layers.Layer]:
        """What stands after the first LSTM: the mixture, a dense expert, or nothing.

        Args:
            **arguments: Of `SparseMoE`, to change it; the paper's networks have the sigmoid as `output_activation`.

        Raises:
            ValueError: If there are arguments, and no mixture.
        """
        if arguments:
            self._check_mixture(f"arguments {sorted(arguments)}")
        if self.num_experts is not None:
            (hidden,) = self.expert_hidden
            arguments = {"output_activation": "sigmoid", "name": "moe", **arguments}
            return [SparseMoE(self.num_experts, hidden, k=self.k, **arguments)]
        if not self.expert_hidden:
            return []
        return [dense_feed_forward(self.expert_hidden, self.width, output_activation="sigmoid", name="expert")]

    def build(self, vocabulary_size: int, softmax: keras.layers.Layer | None = None, **arguments) -> keras.Model:
        """A new model from ids `(batch, time)` to logits `(batch, time, vocabulary_size)`; id 0 is padding.

        Args:
            vocabulary_size: Number of ids.
            softmax: Layer that makes the logits; the paper's is `SampledSoftmax(vocabulary_size)`, to be trained with
                `SampledSoftmaxLoss`. Default None: a dense layer.
            **arguments: Of `SparseMoE`, to change the mixture: `gate`, `importance_weight`, `seed` and so on.

        Raises:
            ValueError: If `vocabulary_size` is no positive integer, or an argument of the mixture is out of range, or
                there is none, or `softmax` makes other logits.
            TypeError: If `softmax` is no layer.
        """
        first, *others = (
            LSTM(units, None if units == self.width else self.width, return_sequences=True, name=f"lstm_{n}")
            for n, units in enumerate(self.lstm_units, 1)
        )
        layers = [first, *self.middle(**arguments), *others]
        return residual_language_model(vocabulary_size, layers, self.width, self.dropout, self.name, softmax)


def _mixture(name: str, num_experts: int | tuple[int, int], **sizes) -> PaperNetwork:
    k = (2, 2) if isinstance(num_experts, tuple) else 4
    return PaperNetwork(name, num_experts=num_experts, k=k, **{"expert_hidden": (1024,), **sizes})


PAPER = {
    network.name: network
    for network in (
        PaperNetwork("MoE-1-Wide", expert_hidden=(4096,)),
        PaperNetwork("MoE-1-Deep", expert_hidden=(1024,) * 4),
        PaperNetwork("4xLSTM-512", lstm_units=(512,) * 4),
        PaperNetwork("LSTM-2048-512", lstm_units=(2048,)),
        PaperNetwork("2xLSTM-8192-1024", width=1024, lstm_units=(8192, 8192)),
        _mixture("MoE-4", 4),
        _mixture("MoE-32", 32),
        _mixture("MoE-256", 256),
        _mixture("MoE-256-h", (16, 16)),
        _mixture("MoE-1024-h", (16, 64), dropout=0.2),
        _mixture("MoE-4096-h", (16, 256), dropout=0.2),
        _mixture("MoE-34M", (16, 64), width=1024, lstm_units=(1024, 1024), expert_hidden=(2048,), dropout=0.3),
        _mixture("MoE-143M", (16, 16), width=1024, lstm_units=(4096, 4096), expert_hidden=(8192,), dropout=0.4),
        _mixture("MoE-16384-h", (128, 128)),
        _mixture("MoE-65536-h", (256, 256)),
        _mixture("MoE-131072-h", (256, 512)),
    )
}
"""The paper's language models by their names.

Example:

>>> for name in ("MoE-4", "MoE-256", "MoE-4096-h"):
...     print(name, f"{tf_moe.models.PAPER[name].parameters:,}")
MoE-4 8,392,704
MoE-256 272,891,904
MoE-4096-h 4,303,372,288
"""
