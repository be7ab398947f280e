"""Text for language models, as a stream: corpora, vocabularies and batches.

Example:
    >>> corpus = tf_moe.text.Corpus.standard_library()
    >>> vocabulary = tf_moe.text.build_vocabulary(corpus.train, 8192, tokenizer="code")
    >>> train = tf_moe.text.contiguous_batches(corpus.train, vocabulary, batch_size=32, steps=20)
"""

from tf_moe.text.contiguous import contiguous_batches
from tf_moe.text.corpus import Corpus
from tf_moe.text.facts import FactLanguage
from tf_moe.text.packed import packed_batches
from tf_moe.text.sentences import sentence_batches
from tf_moe.text.text import Text
from tf_moe.text.token_cache import TokenCache, cache_tokens
from tf_moe.text.tokenizer import Tokenizer
from tf_moe.text.vocabulary import Vocabulary, build_vocabulary

__all__ = [
    "Corpus",
    "FactLanguage",
    "Text",
    "TokenCache",
    "Tokenizer",
    "Vocabulary",
    "build_vocabulary",
    "cache_tokens",
    "contiguous_batches",
    "packed_batches",
    "sentence_batches",
]
