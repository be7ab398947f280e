"""A gate for each language: the example in its smoke size, and what its parts make."""

import numpy as np

from tests.base import TestCase
from tests.examples.program import EXAMPLES, load, run

PROGRAM = EXAMPLES / "two_languages.py"


class TwoLanguagesTest(TestCase):
    def test_smoke(self):
        outcome = run(PROGRAM, "--smoke")
        self.assertEqual(outcome.returncode, 0, outcome.stderr)
        table = [line.strip("| ").split(" | ") for line in outcome.stdout.splitlines() if line.startswith("| ")]
        head, _, dense, one_gate, by_language, floor = table
        self.assertEqual([dense[0], one_gate[0], by_language[0]], ["dense", "one_gate", "gate_by_language"])
        self.assertEqual(dense[2], one_gate[2])  # multiply-adds
        self.assertEqual(one_gate[2], by_language[2])
        kernels = 2 * 16 * 8  # another W_g and W_noise of 8 experts
        self.assertEqual(int(by_language[1].replace(",", "")) - int(one_gate[1].replace(",", "")), kernels)
        for row in (dense, one_gate, by_language):
            for column in (3, 4):
                self.assertBetween(float(row[column]), float(floor[column]), 35)  # after four steps, of 30 words
        self.assertIn("perplexity, language 1", head)

    def test_more_experts_for_a_word_than_there_are(self):
        outcome = run(PROGRAM, "--smoke", "--k", 65)
        self.assertEqual(outcome.returncode, 1)
        self.assertRegex(outcome.stderr, "two_languages.py: k cannot exceed the number of experts.*k=65")

    def test_batches_say_which_language_is_spoken(self):
        program = load(PROGRAM)
        options = program.parse_arguments(["--smoke", "--time", "9"])
        languages = [program.FactLanguage(30, exponent=0.7, seed=seed) for seed in range(2)]
        inputs, following, weights = next(iter(program.make_batches(languages, options, seed=3)))
        self.assertAllEqual(inputs["language"], [0] * 4 + [1] * 4)
        whole = np.concatenate([inputs["words"], following[:, -1:]], axis=1)
        facts = np.array([[(known.facts[s[:-2], s[1:-1]] == s[2:]).mean() for known in languages] for s in whole])
        self.assertAllGreater(facts[:4, 0] - facts[:4, 1], 0)  # nine of ten against what comes by chance
        self.assertAllGreater(facts[4:, 1] - facts[4:, 0], 0)
        self.assertAllEqual(weights[:, 0], np.zeros(8))

    def test_layers_have_a_gate_for_each_language_or_one(self):
        program = load(PROGRAM)
        layers = program.make_layers(program.parse_arguments(["--smoke"]))
        self.assertIsNone(layers["one_gate"].gate.num_gates)
        self.assertEqual(layers["gate_by_language"].gate.num_gates, 2)
