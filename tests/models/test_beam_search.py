"""The search against all sequences there are, in vocabularies small enough to write them down."""

import itertools
import math

import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.base import TestCase
from tf_moe.models import beam_search

V, L, S, END = 5, 4, 3, 2
WORDS = [i for i in range(1, V) if i != END]  # id 0 is padding
EVERY = sum(len(WORDS) ** n for n in range(L + 1))  # sequences: those that end, and those that are cut


class Tables:
    """A random language for each of B sentences: probabilities and attention that depend on all ids so far.

    A history is a number: that of the one before it, times V, plus the newest id.
    """

    def __init__(self, rng, batch):
        size = V**L
        logits = 2 * rng.standard_normal((batch, size, V))
        self.log_probs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype("float32")
        self.attention = rng.dirichlet(np.ones(S), (batch, size)).astype("float32")
        self.mask = rng.random((batch, S)) < 0.8

    def part(self, b):
        """The language of one sentence alone."""
        part = object.__new__(Tables)
        part.log_probs, part.attention, part.mask = (x[b : b + 1] for x in (self.log_probs, self.attention, self.mask))
        return part

    def search(self, **arguments):
        """A beam search; its state is the history, and whether it has begun."""
        batch = len(self.mask)

        def step(ids, state):
            history, steps = state
            history = tf.where(steps == 0, 0, history * V + ids)
            log_probs = tf.gather(tf.constant(self.log_probs), history, batch_dims=1)
            return log_probs, tf.gather(tf.constant(self.attention), history, batch_dims=1), (history, steps + 1)

        state = tf.zeros([batch], tf.int32), tf.zeros([batch], tf.int32)
        mask = tf.constant(self.mask)
        return beam_search(step, state, batch, max_length=L, end=END, source_mask=mask, **arguments)

    def score(self, b, ids, alpha, beta):
        """What a sequence scores, by the formula."""
        history, log_prob, coverage = 0, 0.0, np.zeros(S)
        for n, i in enumerate(ids):
            history = 0 if n == 0 else history * V + ids[n - 1]
            log_prob += self.log_probs[b, history, i]
            coverage += self.attention[b, history]
        penalty = sum(math.log(min(c, 1.0)) for c in coverage[self.mask[b]])
        return log_prob / ((5 + len(ids)) / 6) ** alpha + beta * penalty

    def best(self, b, alpha, beta, count=1):
        """The best of all sequences, and their scores."""
        sequences = [(*words, END) for n in range(L) for words in itertools.product(WORDS, repeat=n)]
        sequences += itertools.product(WORDS, repeat=L)  # cut at the largest length
        scored = sorted(((self.score(b, ids, alpha, beta), ids) for ids in sequences), reverse=True)[:count]
        return [[*ids, *[0] * (L - len(ids))] for _, ids in scored], [score for score, _ in scored]

    def greedy(self, b):
        """The most probable id after the other."""
        history, ids = 0, []
        while len(ids) < L and END not in ids:
            history = 0 if not ids else history * V + ids[-1]
            ids.append(1 + int(np.argmax(self.log_probs[b, history, 1:])))
        return [*ids, *[0] * (L - len(ids))]


class BeamSearchTest(TestCase):
    @given(
        seed=st.integers(0, 2**31),
        batch=st.integers(1, 3),
        alpha=st.sampled_from([0.0, 0.6, 2.0]),
        beta=st.sampled_from([0.0, 0.2, 1.0]),
        count=st.sampled_from([None, 1, 3, 10]),
    )
    @settings(max_examples=15, deadline=None)
    def test_wide_beams_find_the_best_of_all(self, seed, batch, alpha, beta, count):
        tables = Tables(np.random.default_rng(seed), batch)
        ids, scores = tables.search(beam_size=EVERY, length_penalty=alpha, coverage_penalty=beta, num_best=count)
        for b in range(batch):
            expected, score = tables.best(b, alpha, beta, count or 1)
            self.assertAllClose(np.reshape(scores[b], [-1]), score, rtol=1e-5, atol=1e-5)
            self.assertAllEqual(np.reshape(ids[b], [-1, L]), expected)
        self.assertEqual(ids.shape, (batch, L) if count is None else (batch, count, L))

    @given(seed=st.integers(0, 2**31))
    @settings(max_examples=15, deadline=None)
    def test_a_beam_of_one_is_greedy(self, seed):
        tables = Tables(np.random.default_rng(seed), 3)
        ids, scores = tables.search(beam_size=1, length_penalty=0.6, coverage_penalty=0.2)
        for b in range(3):
            self.assertAllEqual(ids[b], tables.greedy(b))
            words = [i for i in ids[b].numpy() if i]
            self.assertAllClose(scores[b], tables.score(b, words, 0.6, 0.2), rtol=1e-5)

    @given(seed=st.integers(0, 2**31), beam_size=st.integers(2, 6), beta=st.sampled_from([0.0, 0.3]))
    @settings(max_examples=15, deadline=None)
    def test_any_beam(self, seed, beam_size, beta):
        """A sequence that exists, its own score, and the same without the other sentences."""
        tables = Tables(np.random.default_rng(seed), 3)
        arguments = {"beam_size": beam_size, "length_penalty": 0.6, "coverage_penalty": beta}
        ids, scores = tables.search(**arguments)
        for b in range(3):
            words = [int(i) for i in ids[b].numpy() if i]
            self.assertEqual(words + [0] * (L - len(words)), ids[b].numpy().tolist())
            self.assertTrue(words[-1] == END or len(words) == L)
            self.assertNotIn(END, words[:-1])
            self.assertAllClose(scores[b], tables.score(b, words, 0.6, beta), rtol=1e-5, atol=1e-6)
            alone = tables.part(b).search(**arguments)
            self.assertAllEqual(alone[0][0], ids[b])
            self.assertAllClose(alone[1][0], scores[b], rtol=1e-6)  # vectorized sums round differently

    def test_in_graphs(self):
        tables = Tables(self.rng, 2)
        arguments = {"beam_size": 4, "coverage_penalty": 0.2}
        expected = tables.search(**arguments)
        for jit in (False, True):
            self.assertAllClose(tf.function(lambda: tables.search(**arguments), jit_compile=jit)(), expected)

    def test_stops_when_nothing_open_can_win(self):
        """Once the end has nine tenths of the probability, ten steps more cannot make up for it."""
        calls = []

        def step(ids, state):
            calls.append(ids)
            return tf.math.log(tf.constant([1e-9, 0.05, 0.9, 0.05])) + tf.zeros([2, 3, 1]), None, state

        ids, scores = beam_search(step, (), 2, beam_size=3, max_length=50, length_penalty=0.0)
        self.assertLen(calls, 1)
        self.assertAllEqual(ids[:, :2], [[2, 0]] * 2)
        self.assertAllClose(scores, np.log([0.9, 0.9]))

    def test_a_longer_one_may_still_win(self):
        """By the penalty of length, though it is less probable than one that has ended before."""

        def step(ids, state):
            first = tf.expand_dims(tf.equal(state, 0), -1)
            log_probs = tf.math.log(tf.where(first, [1e-9, 0.4, 0.5, 0.1], [1e-9, 1e-9, 0.999, 1e-9]))
            return log_probs, None, state + 1

        def best(alpha):
            return beam_search(step, tf.zeros([1]), 1, max_length=9, length_penalty=alpha)[0][0, :3]

        self.assertAllEqual(best(0.0), [2, 0, 0])
        self.assertAllEqual(best(3.0), [1, 2, 0])

    def test_more_room_than_sequences(self):
        """What cannot be does not take the place of what comes later."""
        ids, _ = beam_search(
            lambda ids, state: (tf.math.log([0.0, 0.6, 0.4]) + tf.zeros([1, 40, 1]), None, state),
            (), 1, beam_size=40, max_length=5, length_penalty=0.0,
        )  # fmt: skip
        self.assertAllEqual(ids, [[2, 0, 0, 0, 0]])

    def test_fewer_than_asked_for(self):
        """Of a language with two sequences."""
        _, scores = beam_search(
            lambda ids, state: (tf.math.log([0.0, 0.6, 0.4, 0.0]) + tf.zeros([1, 3, 1]), None, state),
            (), 1, beam_size=3, max_length=1, length_penalty=0.0, num_best=3,
        )  # fmt: skip
        self.assertAllClose(scores, [[np.log(0.6), np.log(0.4), -np.inf]])

    def test_half_precision(self):
        """What a step returns in it is summed in float32."""
        tables = Tables(self.rng, 2)
        tables.log_probs, tables.attention = (
            tf.cast(x, tf.bfloat16).numpy() for x in (tables.log_probs, tables.attention)
        )
        ids, scores = tables.search(beam_size=4, coverage_penalty=0.2)
        tables.log_probs, tables.attention = (x.astype("float32") for x in (tables.log_probs, tables.attention))
        expected = tables.search(beam_size=4, coverage_penalty=0.2)
        self.assertAllEqual(ids, expected[0])
        self.assertAllClose(scores, expected[1], rtol=1e-5)

    def test_defaults(self):
        """A beam of 4, a penalty of 0.6 for length, none for coverage, at most 128 ids, 2 before and after them."""
        tables = Tables(self.rng, 3)
        explicit = tables.search(beam_size=4, length_penalty=0.6, coverage_penalty=0.0)
        for ours, expected in zip(tables.search(), explicit, strict=True):
            self.assertAllEqual(ours, expected)
        asked = []

        def step(ids, state):
            asked.append(ids)
            return tf.math.log([0.0, 0.9, 0.1]) + tf.zeros([*ids.shape, 1]), None, state

        ids, scores = beam_search(step, (), 1, length_penalty=0.0)
        self.assertAllEqual(asked[0], [[2] * 4])
        self.assertEqual(ids.shape, (1, 128))
        self.assertAllClose(scores, [np.log(0.1)])

    def test_coverage_without_weights(self):
        with self.assertRaisesRegex(ValueError, "weights from `step`.*coverage_penalty=0.1"):
            beam_search(
                lambda ids, state: (tf.zeros([1, 2, 3]), None, state),
                (), 1, beam_size=2, coverage_penalty=0.1, source_mask=[[True]],
            )  # fmt: skip

    @parameterized.parameters(
        ({"beam_size": 0}, "beam_size=0"),
        ({"max_length": 2.5}, "max_length=2.5"),
        ({"length_penalty": -1}, "length_penalty=-1"),
        ({"coverage_penalty": "a"}, "coverage_penalty='a'"),
        ({"coverage_penalty": 0.1}, "coverage_penalty=0.1, source_mask=None"),
        ({"end": 0}, "end=0"),
        ({"beam_size": 2, "num_best": 3}, "num_best=3, beam_size=2"),
        ({"num_best": 0}, "num_best=0"),
    )
    def test_bad_arguments(self, arguments, pattern):
        with self.assertRaisesRegex(ValueError, pattern):
            beam_search(None, (), 1, **arguments)
