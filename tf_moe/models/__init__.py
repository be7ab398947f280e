"""Networks of the paper, and how their outputs are measured, continued and searched."""

from tf_moe.models.beam_search import beam_search
from tf_moe.models.decoder import Decoder
from tf_moe.models.language_model import dense_twin, language_model, residual_language_model
from tf_moe.models.paper import PAPER, PaperNetwork
from tf_moe.models.perplexity import Perplexity
from tf_moe.models.smoothed_crossentropy import SmoothedCrossentropy
from tf_moe.models.translator import Translator
from tf_moe.models.translators import TRANSLATORS, TranslationNetwork

__all__ = [
    "PAPER",
    "TRANSLATORS",
    "Decoder",
    "PaperNetwork",
    "Perplexity",
    "SmoothedCrossentropy",
    "TranslationNetwork",
    "Translator",
    "beam_search",
    "dense_twin",
    "language_model",
    "residual_language_model",
]
