"""A generated language of known entropy, to measure capacity against a floor on data that never run out."""

import functools
import math

import numpy as np
import tensorflow as tf

from tf_moe import checks

_MOST_WORDS = 4096  # a gigabyte, and a minute or two for the entropy


class FactLanguage:
    """A language that has nothing but facts: the two words before set each next word, but for some noise.

    ```
    next word = fact(word before the last, last word)   with probability fact_probability
                any word, by Zipf's law                 otherwise
    ```

    The facts are drawn once, by Zipf's law too, and have no pattern: a model knows those that it has memorised.
    Frequent words make frequent facts, so there is always a rarer one to learn, as in real text. Words are numbered
    from 1 by frequency; 0 is padding.

    Args:
        num_words: Number of words V, up to 4096; the facts are V * V. Default 512, which makes 262,144. Takes some 50
            bytes of memory for each fact.
        fact_probability: Share of the words that are set by a fact. Default 0.9.
        exponent: Of Zipf's law: word number r has a frequency of r^-exponent. Default 1.
        seed: Integer seed of the facts: with the same seed the language is the same. Default 0.

    Attributes:
        facts: Int32 `(V + 1, V + 1)`, the word that follows each two words; the row and the column of padding are 0.
        entropy: Entropy of a word given all words before, in nats: no model has a lower mean cross-entropy.
        perplexity: e to the power of that.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> language = tf_moe.text.FactLanguage(num_words=100, fact_probability=0.8)
    >>> words, following, weights = next(iter(language.batches(batch_size=4, steps=10)))
    >>> words.shape, round(language.perplexity, 1)
    (TensorShape([4, 10]), 3.2)
    """

    def __init__(self, num_words: int = 512, fact_probability: float = 0.9, exponent: float = 1.0, seed: int = 0):
        self.num_words = checks.integer("num_words", num_words)
        if self.num_words > _MOST_WORDS:
            raise ValueError(f"num_words must be at most {_MOST_WORDS}. Received: num_words={num_words}.")
        self.fact_probability = checks.zero_to_below_one("fact_probability", fact_probability)
        self.exponent = checks.at_least_zero("exponent", exponent)
        self.seed = checks.integer("seed", seed, least=0)
        frequency = np.arange(1, self.num_words + 1) ** -self.exponent
        self._frequency = np.concatenate([[0], frequency / frequency.sum()])  # of the words 0 to V
        facts = np.zeros((self.num_words + 1, self.num_words + 1), np.int32)
        rng = np.random.default_rng(self.seed)
        facts[1:, 1:] = 1 + rng.choice(self.num_words, (self.num_words, self.num_words), p=self._frequency[1:])
        self.facts = facts

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, padding included."""
        return self.num_words + 1

    @functools.cached_property
    def pair_frequency(self) -> np.ndarray:
        """How often each word follows each other one in the long run, float64 `(V + 1, V + 1)`."""
        size = self.vocabulary_size
        following = self.facts + size * np.arange(size)  # fact(a, b) as a pair (b, fact(a, b))
        pairs = np.outer(self._frequency, self._frequency)
        change = 1.0
        while change > 1e-13:  # noise makes the chain forget where it began
            set_by_fact = np.bincount(following.ravel(), pairs.ravel(), size * size).reshape(size, size)
            noise = np.outer(pairs.sum(0), self._frequency)
            before, pairs = pairs, self.fact_probability * set_by_fact + (1 - self.fact_probability) * noise
            pairs /= pairs.sum()
            change = np.abs(pairs - before).sum()
        return pairs

    @functools.cached_property
    def entropy(self) -> float:
        """Entropy of a word given all words before, in nats: no model has a lower mean cross-entropy."""
        by_chance = (1 - self.fact_probability) * self._frequency
        surprise = _surprise(by_chance)
        of_fact = surprise.sum() - surprise + _surprise(by_chance + self.fact_probability)  # by the word that is it
        return float((self.pair_frequency * of_fact[self.facts]).sum())

    @property
    def perplexity(self) -> float:
        """The perplexity of the language itself, e to the power of `entropy`."""
        return math.exp(self.entropy)

    def log_probability(self, words: np.ndarray) -> np.ndarray:
        """Log-probability of each word from the third on under the language itself.

        The negative mean is the lowest cross-entropy possible on these words.

        Args:
            words: Integers `(B, T)`, sequences of the language.

        Returns:
            Float64 `(B, T - 2)`, natural logarithms.
        """
        words = np.asarray(words)
        is_fact = self.facts[words[:, :-2], words[:, 1:-1]] == words[:, 2:]
        return np.log((1 - self.fact_probability) * self._frequency[words[:, 2:]] + self.fact_probability * is_fact)

    def batches(self, batch_size: int, steps: int, seed: int = 0, num_batches: int | None = None) -> tf.data.Dataset:
        """Sequences of the language, always new ones.

        Args:
            batch_size: Sequences in a batch, B.
            steps: Words of a sequence, T.
            seed: Integer; another one gives other sequences. Batch number n is the same whenever it is asked for.
            num_batches: After how many the dataset ends, and begins again with the first. Default None: never.

        Returns:
            A dataset of (words, following words, weights), `(B, T)`, int32, int32, float32. The weight of each
            sequence's first is 0: of the two words that set it, the model has seen one.

        Raises:
            ValueError: If an argument is no integer in its range.
        """
        batch_size, steps = checks.integer("batch_size", batch_size), checks.integer("steps", steps)
        seed = checks.integer("seed", seed, least=0)
        numbers = tf.data.Dataset.counter()
        if num_batches is not None:
            numbers = tf.data.Dataset.range(checks.integer("num_batches", num_batches))
        first, chance = (_cumulative(x) for x in (self.pair_frequency.ravel(), self._frequency))
        facts, weights = tf.constant(self.facts.ravel()), np.ones((batch_size, steps), np.float32)
        weights[:, 0] = 0

        def make(number):
            seeds = tf.random.experimental.stateless_split(tf.stack([tf.cast(seed, tf.int64), number]), 2)
            uniform = tf.random.stateless_uniform([steps + 1, batch_size], seeds[0], dtype=tf.float64)
            start = tf.cast(tf.searchsorted(first, uniform[0], side="right"), tf.int32)
            words = [start // self.vocabulary_size, start % self.vocabulary_size]
            is_fact = tf.random.stateless_uniform([steps + 1, batch_size], seeds[1]) < self.fact_probability
            by_chance = tf.cast(tf.searchsorted(chance, tf.reshape(uniform[1:], [-1]), side="right"), tf.int32)
            by_chance = tf.reshape(by_chance, [steps, batch_size])
            for n in range(steps - 1):
                fact = tf.gather(facts, words[-2] * self.vocabulary_size + words[-1])
                words.append(tf.where(is_fact[n], fact, by_chance[n]))
            sequence = tf.stack(words, axis=1)
            return sequence[:, :-1], sequence[:, 1:], tf.constant(weights)

        return numbers.map(make, num_parallel_calls=2).prefetch(4)


def _surprise(probability: np.ndarray) -> np.ndarray:
    """-p log p, which is 0 for what never happens."""
    return -probability * np.log(np.where(probability > 0, probability, 1))


def _cumulative(frequency: np.ndarray) -> tf.Tensor:
    """Where to look up a uniform number; rounding must not leave any beyond the end."""
    cumulative = np.cumsum(frequency)
    return tf.constant(cumulative / cumulative[-1])
