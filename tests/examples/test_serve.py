"""What the example exports, against the model it was exported from."""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.examples.program import EXAMPLES, run
from tests.processes import run_python
from tf_moe.layers import SparseMoE
from tf_moe.models import language_model
from tf_moe.text import Vocabulary

EXAMPLE = EXAMPLES / "serve.py"
WORDS = ["the", "cat", "dog", "sat", "ran", "mat"]

# Commands in one process; at its end, that nothing has imported the library that trained the model.
RUN = f"""
import json, runpy, sys
for arguments in json.loads(sys.argv[1]):
    sys.argv = [{str(EXAMPLE)!r}, *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")
assert "tf_moe" not in sys.modules
"""


class ServeTest(TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.get_temp_dir()) / self._testMethodName
        self.folder.mkdir()
        self.vocabulary = Vocabulary([*Vocabulary.specials, *WORDS])
        self.vocabulary.save(self.folder / "vocabulary.txt")
        self.model = language_model(len(self.vocabulary), [SparseMoE(4, 16, k=2)], width=8)
        for weight in self.model.trainable_weights:
            weight.assign(self.normal(*weight.shape) * 0.7)
        self.model.save(self.folder / "model.keras")
        self.assertEqual(run(EXAMPLE, "export", self.folder / "model.keras", self.folder / "served").returncode, 0)

    def score_by_hand(self, line):
        ids = [Vocabulary.END, *self.vocabulary.encode([line])[0].numpy()]
        logits = self.model(np.array([ids[:-1]]))[0]
        return sum(float(tf.nn.log_softmax(row)[target]) for row, target in zip(logits, ids[1:], strict=True))

    def continue_by_hand(self, line, length):
        """The most likely words, the whole text computed again for each."""
        ids = [Vocabulary.END, *self.vocabulary.encode([line])[0].numpy()[:-1]]
        words = [line]
        for _ in range(length):
            logits = self.model(np.array([ids]))[0, -1].numpy()
            logits[:2] = -np.inf  # neither padding nor an unknown word
            ids.append(int(logits.argmax()))
            if ids[-1] == Vocabulary.END:
                break
            words.append(self.vocabulary.tokens[ids[-1]])
        return " ".join(words)

    def test_what_is_served(self):
        with self.subTest("answers"):
            self.check_answers()
        with self.subTest("from the command line"):
            self.check_command_line()
        with self.subTest("mistakes"):
            self.check_mistakes()

    def check_answers(self):
        served = tf.saved_model.load(str(self.folder / "served"))
        lines = ["the cat sat", "dog", "mat ran the dog a"]
        scores, counts = served.score(tf.constant(lines))
        self.assertAllClose(scores, [self.score_by_hand(line) for line in lines], rtol=1e-4)
        self.assertAllEqual(counts, [4, 2, 6])
        texts = served.generate(tf.constant(lines), tf.constant(6), tf.constant(0.0), tf.constant([1, 2]))
        self.assertEqual([t.decode() for t in texts.numpy()], [self.continue_by_hand(line, 6) for line in lines])
        for n, line in enumerate(lines):  # whatever else is in the batch
            self.assertAllClose(served.score(tf.constant([line]))[0], scores[n : n + 1], rtol=1e-5)
        drawn = [
            served.generate(tf.constant(lines), tf.constant(9), tf.constant(20.0), tf.constant([seed, 0])).numpy()
            for seed in (1, 1, 2)
        ]
        self.assertAllEqual(drawn[0], drawn[1])
        self.assertNotEqual(list(drawn[0]), list(drawn[2]))

    def check_command_line(self):
        folder = str(self.folder / "served")
        commands = [
            ["score", folder, "--text", "the cat", "--repeat", "3"],
            ["continue", folder, "--text", "the cat", "--tokens", "3", "--temperature", "0.8"],
        ]
        score, score_time, text, text_time = run_python("-c", RUN, json.dumps(commands)).stdout.splitlines()
        self.assertRegex(score, "nats, .* the cat$")
        self.assertStartsWith(text, "the cat")
        for time in (score_time, text_time):
            self.assertRegex(time, r"[\d,]+ tokens/s; a call takes [\d.]+ ms")

    def check_mistakes(self):
        served, nowhere = self.folder / "served", self.folder / "nowhere"
        for arguments, message in (
            (
                ["translate", served, "--text", "the cat"],
                "serve.py: .*served cannot translate. It can: score, continue",
            ),
            (["continue", nowhere, "--text", "the"], "serve.py: SavedModel file does not exist at: .*nowhere"),
            (["export", nowhere / "model.keras", served], "serve.py: File not found: filepath=.*nowhere"),
            (["export", self.folder / "model.keras", served, "--vocabulary", nowhere], "serve.py: .*nowhere"),
            (["continue", served, "--text", "the", "--seed", 3_000_000_000], "--seed: must be an integer of 32 bits"),
            (["continue", served, "--text", "the", "--tokens", -1], "--tokens: must be at least 1, not -1"),
        ):
            outcome = run(EXAMPLE, *arguments)
            self.assertNotEqual(outcome.returncode, 0)
            self.assertRegex(outcome.stderr, message)
