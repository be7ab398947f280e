"""Text for language models and translation, as a stream: corpora, vocabularies, word pieces and batches.

Example:
    >>> corpus = tf_moe.text.Corpus(*(tf_moe.text.Text([f"pairs/{part}.en"]) for part in ("train", "val", "test")))
    >>> vocabulary = tf_moe.text.build_vocabulary(corpus.train, size=None)
    >>> train = tf_moe.text.contiguous_batches(corpus.train, vocabulary, batch_size=2, steps=4)
    >>> for inputs, targets, weights in train.take(1):
    ...     print(vocabulary.decode(targets[0].numpy()))
    two men are in
"""

from tf_moe.text.contiguous import contiguous_batches
from tf_moe.text.corpus import Corpus
from tf_moe.text.facts import FactLanguage
from tf_moe.text.packed import packed_batches
from tf_moe.text.parallel_corpus import ParallelCorpus
from tf_moe.text.parallel_text import PairCounts, ParallelText
from tf_moe.text.pieces import Pieces, build_pieces
from tf_moe.text.sentences import sentence_batches
from tf_moe.text.text import Text
from tf_moe.text.token_cache import TokenCache, cache_tokens
from tf_moe.text.tokenizer import Tokenizer
from tf_moe.text.translation import count_too_long, translation_batches
from tf_moe.text.vocabulary import Vocabulary, build_vocabulary

__all__ = [
    "Corpus",
    "FactLanguage",
    "PairCounts",
    "ParallelCorpus",
    "ParallelText",
    "Pieces",
    "Text",
    "TokenCache",
    "Tokenizer",
    "Vocabulary",
    "build_pieces",
    "build_vocabulary",
    "cache_tokens",
    "contiguous_batches",
    "count_too_long",
    "packed_batches",
    "sentence_batches",
    "translation_batches",
]
