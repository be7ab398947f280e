"""Networks of the paper, and what they need."""

from tf_moe.models.language_model import dense_twin, language_model
from tf_moe.models.perplexity import Perplexity

__all__ = ["Perplexity", "dense_twin", "language_model"]
