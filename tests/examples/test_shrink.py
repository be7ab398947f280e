"""The example that makes a trained model smaller, on a model that is not."""

from pathlib import Path

import keras

from tests.base import TestCase
from tests.examples.program import EXAMPLES, run
from tf_moe.gates import NoisyTopK
from tf_moe.layers import SparseMoE
from tf_moe.models import Perplexity, language_model
from tf_moe.text import Vocabulary

EXAMPLE = EXAMPLES / "shrink.py"


class ShrinkTest(TestCase):
    def test_mistakes_get_a_message_and_no_traceback(self):
        for arguments, message in (
            (["nowhere.keras"], "shrink.py: File not found: filepath=nowhere.keras"),
            (["nowhere.keras", "--keep", 2, 0], "--keep: must be at least 1, not 0"),
            (["nowhere.keras", "--batch", 0], "--batch: must be at least 1, not 0"),
        ):
            outcome = run(EXAMPLE, *arguments)
            self.assertNotEqual(outcome.returncode, 0)
            self.assertIn(message, outcome.stderr)

    def test_smoke(self):
        folder = Path(self.get_temp_dir())
        data = folder / "data"
        data.mkdir()
        for part in ("train", "valid", "test"):
            (data / f"{part}.txt").write_text("the cat sat on the mat\nthe dog ran\n" * 20)
        vocabulary = Vocabulary([*Vocabulary.specials, "the", "cat", "dog", "sat", "ran", "mat"])
        vocabulary.save(folder / "vocabulary.txt")
        gate = NoisyTopK(8, 2, "glorot_uniform")
        model = language_model(len(vocabulary), [SparseMoE(8, 64, k=2, gate=gate, name="moe")], width=16)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, weighted_metrics=[Perplexity()], run_eagerly=True)
        model.optimizer.build(model.trainable_variables)  # or Keras warns when it is loaded
        model.save(folder / "model.keras")
        arguments = ["--data", data, "--batch", 4, "--steps", 8, "--keep", 4, "--smoke"]
        outcome = run(EXAMPLE, folder / "model.keras", *arguments)
        self.assertEqual(outcome.returncode, 0, outcome.stderr)
        rows = [line.strip("| ").split(" | ") for line in outcome.stdout.splitlines()[2:]]
        sizes = {name: int(size.replace(",", "")) for name, size, *_ in rows}
        kernels, scales = 2 * 8 * 16 * 64, 8 * (16 + 64)
        self.assertEqual(
            sizes,
            {
                "as trained": 4 * kernels,
                "bfloat16": 2 * kernels,
                "int8": kernels + 4 * scales,
                "the most used 1/4": kernels,
                "averaged to 1/4": kernels,
            },
        )
        perplexity = [float(row[2]) for row in rows]
        self.assertAllClose(perplexity[:3], perplexity[:1] * 3, rtol=0.01)
        self.assertEqual(float(rows[0][3]), 0)
