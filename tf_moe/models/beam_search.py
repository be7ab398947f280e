"""Beam search over any step function, for a batch at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_moe import checks

# Of a position that was not looked at: the logarithm of 0 would make all such translations equal.
_LEAST_COVERAGE = 1e-30

State = Any  # a nest of tensors (B, K, ...)
BeamStep = Callable[[tf.Tensor, State], tuple[tf.Tensor, tf.Tensor | None, State]]


class _Beams(NamedTuple):
    """K hypotheses for each of B sentences; those that had ended before the last step come first.

    Attributes:
        ids: Int32 (B, K, L).
        last: Int32 (B, K), the newest id.
        log_prob: (B, K), -inf for one that cannot be.
        ended: Bool (B, K).
        score: (B, K), of those that have ended; -inf for the others.
        coverage: (B, K, S), the sum of the attention's weights so far; (B, K, 0) where nobody asks for it.
    """

    ids: tf.Tensor
    last: tf.Tensor
    log_prob: tf.Tensor
    ended: tf.Tensor
    score: tf.Tensor
    coverage: tf.Tensor


def beam_search(
    step: BeamStep,
    state: State,
    batch_size: int | tf.Tensor,
    *,
    beam_size: int = 4,
    max_length: int = 128,
    start: int = 2,
    end: int = 2,
    length_penalty: float = 0.6,
    coverage_penalty: float = 0.0,
    source_mask: tf.Tensor | None = None,
    num_best: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The best sequence that a beam search finds for each sentence of a batch.

    ```
    score(Y) = log P(Y) / ((5 + |Y|) / 6)^alpha + beta sum_i log min(sum_j p_ij, 1)
    ```

    Y counts its end, alpha is `length_penalty`, beta `coverage_penalty`, and p_ij the weight that the attention gives
    source position i at step j. Each step extends the open hypotheses, and keeps the most probable of what comes out,
    as many as the beam has room for. One that ends keeps its place, and its score, until the search stops: when all
    have ended, when no open one can come to score more than the best that has ended (or the last of the `num_best`), or
    at `max_length`, where open ones end as they are. So a beam of 1 is greedy search, and one wide enough is
    exhaustive. What is found for a sentence does not depend on the other ones of the batch. Runs eagerly, in a
    `tf.function` and under XLA.

    Args:
        step: `step(ids, state)` takes the newest ids, int32 `(B, K)`, and returns the log-probabilities of the next,
            float `(B, K, V)`, the attention's weights `(B, K, S)`, and the new state. Without a coverage penalty the
            weights may be None.
        state: Nest of tensors `(B, ...)`, before the first step. They become `(B, K, ...)`, and follow the hypotheses.
            What all hypotheses of a sentence share, such as its encoding, should be captured by `step`, not passed
            here.
        batch_size: Number of sentences B.
        beam_size: Number of hypotheses K. Default 4.
        max_length: Largest number of ids, the end included. Default 128.
        start: The id before the first one. Default 2, which `tf_moe.text.Vocabulary` puts between sentences.
        end: The id that ends a sequence. Default 2.
        length_penalty: Alpha, 0 or more; 0 ranks by probability, which favours short sequences. Default 0.6.
        coverage_penalty: Beta, 0 or more; 0, the default, has no need of weights.
        source_mask: Bool `(B, S)`, which source positions ask for coverage; None, the default, without that penalty.
        num_best: Number n of sequences to return for each sentence, the best first, at most `beam_size`. Default None:
            the best alone, without an axis for them.

    Returns:
        Ids, int32 `(B, max_length)`: the sequence with its end, unless it was cut at `max_length`, then zeros; id 0,
        padding, is never chosen. And scores, float32 `(B,)`. With `num_best`, `(B, n, max_length)` and `(B, n)`; where
        there are fewer sequences than that, those after them score -inf.

    Raises:
        ValueError: If an argument is out of range, or there is a coverage penalty and no `source_mask`, or no weights.

    Example:

    ```python
    following = tf.constant(  # probabilities of the next id by the newest one; 2 begins and ends
        [[0.0, 0.0, 0.0, 0.0], [0.0, 0.1, 0.1, 0.8], [0.0, 0.6, 0.1, 0.3], [0.0, 0.05, 0.9, 0.05]]
    )


    def step(ids, state):
        return tf.math.log(tf.gather(following, ids)), None, state


    ids, scores = tf_moe.models.beam_search(step, (), batch_size=1, beam_size=2, max_length=5)
    assert ids.numpy().tolist() == [[1, 3, 2, 0, 0]]
    ```

    Reference: section 7 of Wu et al. (2016), Google's Neural Machine Translation System.
    """
    beam_size = checks.integer("beam_size", beam_size)
    max_length = checks.integer("max_length", max_length)
    start, end = checks.integer("start", start, least=0), checks.integer("end", end)
    alpha = checks.at_least_zero("length_penalty", length_penalty)
    beta = checks.at_least_zero("coverage_penalty", coverage_penalty)
    best = 1 if num_best is None else checks.integer("num_best", num_best)
    if best > beam_size:
        raise ValueError(f"num_best must be at most beam_size. Received: num_best={best}, beam_size={beam_size}.")
    covers = beta > 0
    if covers and source_mask is None:
        raise ValueError(
            "A coverage penalty needs to know the source's positions. "
            f"Received: coverage_penalty={coverage_penalty}, source_mask=None. Pass a mask, also one of True alone."
        )

    def score(log_prob, coverage, length):
        value = log_prob / _length_penalty(length, alpha)
        if not covers:
            return value
        covered = tf.math.log(tf.clip_by_value(coverage, _LEAST_COVERAGE, 1.0))
        return value + beta * tf.reduce_sum(tf.where(tf.expand_dims(source_mask, 1), covered, 0.0), -1)

    def settled(beams):
        """Whether nothing open can score more than the best that have ended, (B,)."""
        still_open = tf.where(beams.ended, -float("inf"), beams.log_prob)
        # Probabilities only fall, the penalty of length only rises, and that of coverage is 0 at best.
        bound = tf.reduce_max(still_open, -1) / _length_penalty(max_length, alpha)
        return tf.math.top_k(beams.score, best).values[:, -1] >= bound

    def advance(t, beams, state):
        log_probs, weights, state = step(beams.last, state)
        log_probs = tf.cast(log_probs, tf.float32)
        size = tf.shape(log_probs)[-1]
        padding = tf.equal(tf.range(size), 0)
        # What has ended goes on with padding alone, before all others.
        extended = tf.where(padding, -float("inf"), tf.expand_dims(beams.log_prob, -1) + log_probs)
        kept = tf.where(padding, float("inf"), -float("inf"))
        candidates = tf.where(tf.expand_dims(beams.ended, -1), kept, extended)
        value, place = tf.math.top_k(tf.reshape(candidates, [batch_size, beam_size * size]), beam_size)
        parent, token = place // size, place % size

        def follow(x):
            return tf.gather(x, parent, batch_dims=1)

        coverage = beams.coverage
        if covers:
            if weights is None:
                raise ValueError(
                    "A coverage penalty needs the attention's weights from `step`, which returned None for them. "
                    f"Received: coverage_penalty={coverage_penalty}."
                )
            coverage += tf.cast(weights, tf.float32)
        had_ended, coverage = tf.equal(value, float("inf")), follow(coverage)
        log_prob = tf.where(had_ended, follow(beams.log_prob), value)
        ends = tf.equal(token, end) & (log_prob > -float("inf")) & ~had_ended
        new_score = tf.where(ends, score(log_prob, coverage, t + 1), -float("inf"))
        beams = _Beams(
            ids=tf.where(tf.equal(tf.range(max_length), t), tf.expand_dims(token, -1), follow(beams.ids)),
            last=token,
            log_prob=log_prob,
            ended=had_ended | ends,
            score=tf.where(had_ended, follow(beams.score), new_score),
            coverage=coverage,
        )
        return t + 1, beams, tf.nest.map_structure(follow, state)

    rows = tf.stack([batch_size, beam_size])
    beams = _Beams(
        ids=tf.zeros(tf.stack([batch_size, beam_size, max_length]), tf.int32),
        last=tf.fill(rows, start),
        # All hypotheses are one at first: the others cannot be.
        log_prob=tf.where(tf.equal(tf.range(beam_size), 0), tf.zeros(rows), -float("inf")),
        ended=tf.zeros(rows, tf.bool),
        score=tf.fill(rows, -float("inf")),
        coverage=tf.zeros(tf.stack([batch_size, beam_size, tf.shape(source_mask)[1] if covers else 0])),
    )
    state = tf.nest.map_structure(lambda x: tf.repeat(tf.expand_dims(x, 1), beam_size, axis=1), state)
    _, beams, _ = tf.while_loop(
        lambda t, beams, _: (t < max_length) & ~tf.reduce_all(settled(beams)), advance, (0, beams, state)
    )
    # Where the search came to its last step, open ones end there.
    cut = ~beams.ended & ~tf.expand_dims(settled(beams), -1)
    scores = tf.where(cut, score(beams.log_prob, beams.coverage, max_length), beams.score)
    scores, place = tf.math.top_k(scores, best)
    ids = tf.gather(beams.ids, place, batch_dims=1)
    return (ids, scores) if num_best is not None else (ids[:, 0], scores[:, 0])


def _length_penalty(length, alpha):
    return ((5.0 + tf.cast(length, tf.float32)) / 6.0) ** alpha
