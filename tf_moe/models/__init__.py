"""Networks of the paper, and how language models are measured and continued."""

from tf_moe.models.decoder import Decoder
from tf_moe.models.language_model import dense_twin, language_model, residual_language_model
from tf_moe.models.paper import PAPER, PaperNetwork
from tf_moe.models.perplexity import Perplexity

__all__ = ["PAPER", "Decoder", "PaperNetwork", "Perplexity", "dense_twin", "language_model", "residual_language_model"]
