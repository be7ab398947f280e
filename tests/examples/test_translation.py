"""The example as a user runs it: numbers in words, and files of its own; what it exports, and what it refuses."""

import gzip
import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.examples.program import EXAMPLES, eagerly, load, run
from tests.processes import run_python
from tests.text.files import new_folder, write

EXAMPLE = EXAMPLES / "translation.py"
SERVE = EXAMPLE.parent / "serve.py"

# Ends with an exception in the second epoch, as a machine might that is taken back.
INTERRUPTED = f"""
import runpy, sys
sys.path.insert(0, {str(EXAMPLE.parent)!r})
from translating import train
def interrupt(self, epoch, logs=None):
    if epoch == 1:
        raise KeyboardInterrupt
train.KeepBest.on_epoch_begin = interrupt
runpy.run_path({str(EXAMPLE)!r}, run_name="__main__")
"""

# Many commands in one process, with what each says when it ends with an error instead of a traceback. At its end, that
# nothing has imported the library that trained the model.
SERVED = f"""
import json, runpy, sys
for arguments in json.loads(sys.argv[1]):
    sys.argv = [{str(SERVE)!r}, *arguments]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        print(error)
assert not {{"tf_moe", "sentencepiece"}} & set(sys.modules)
"""


class TranslationExampleTest(TestCase):
    def setUp(self):
        super().setUp()
        self.folder = new_folder(self)

    def run_example(self, *arguments, example=EXAMPLE):
        tf.random.set_seed(0)  # the same for each, as in new processes: the order of the data depends on it too
        outcome = run(example, *arguments)
        self.assertEqual(outcome.returncode, 0, outcome.stderr)
        return outcome.stdout

    def aligned(self, name="data", parts=("train", "val", "test"), languages=("en", "fr"), lines=20):
        words = ["cat", "dog", "sat", "ran", "on", "a", "mat"]
        for part in parts:
            drawn = self.rng.choice(words, (lines, 5))
            for language in languages:
                text = [" ".join(f"{language}{word}" for word in line) for line in drawn]
                write(self.folder / name / f"{part}.{language}.gz", text)
        return self.folder / name

    def check_served(self, served, source, translation, *, language, wrong_language, message):
        """A translation with the arguments `language`, and the complaint about others."""
        commands = [["translate", str(served), "--text", source, *to] for to in (language, wrong_language)]
        line, speed, complaint = run_python("-c", SERVED, json.dumps(commands)).stdout.split("\n", 2)
        self.assertEqual(line[11:], translation)
        self.assertRegex(speed, r"[\d,]+ lines/s")
        self.assertStartsWith(complaint, "serve.py: ")
        self.assertIn(message, complaint)

    def test_numbers(self):
        output = self.folder / "numbers"
        out = run_python(EXAMPLE, "--smoke", "--models", "moe", "--output", output).stdout
        self.assertIn("12 directions: de-en en-de en-es en-fr en-ja en-ko en-pt es-en fr-en ja-en ko-en pt-en", out)
        self.assertIn("train: 4,560 pairs\n", out)
        self.assertRegex(out, r"\| direction \| moe: exact match \| moe: BLEU \|")
        self.assertLen(re.findall(r"^\| \w\w-\w\w \| [\d.]+ % \| [\d.]+ \|$", out, re.MULTILINE), 12)
        self.assertRegex(out, r"BLEU nrefs:1\|case:mixed\|eff:no\|tok:char\|smooth:exp\|version:[\d.]+: de-en en-de")
        self.assertRegex(out, r"validation perplexity: moe [\d.]+\n")
        pages = [(output / f"moe-{layer}.html").read_text() for layer in ("encoder_moe", "decoder_moe")]
        for number in range(4):
            self.assertIn(f"Expert {number}", "".join(pages))
        self.assertRegex(pages[0], r"<b> ?[a-z]+</b>")
        self.assertNotIn("\u2581", "".join(pages))
        # What is served answers as the model did in the process that trained it.
        source, translation = re.search(r"en-fr\n  source     (.*)\n  reference  .*\n  moe        (.*)", out).groups()
        self.check_served(
            output / "moe-served",
            source,
            translation,
            language=["--to", "fr"],
            wrong_language=["--to", "xx"],
            message="target_language must be one of: de, en, es",
        )
        lines = {}
        for language in ("en", "ja"):
            for part in ("train", "val", "test"):
                text = gzip.decompress((output / "numbers" / f"{part}.{language}.gz").read_bytes()).decode("utf-8")
                lines[part, language] = text.splitlines()
        self.assertEqual([len(lines[part, "en"]) for part in ("train", "val", "test")], [380, 10, 10])
        self.assertLen({line for (_, language), part in lines.items() if language == "en" for line in part}, 400)
        self.assertEqual(lines["train", "ja"][21], "二十一")
        self.assertEqual(lines["train", "en"][21], "twenty-one")

    def test_files_of_its_own_and_an_interruption(self):
        data = self.aligned()
        arguments = ["--data", data, "--source", "en", "--target", "fr", "--models", "dense", "--smoke", "--output"]
        whole = self.run_example(*arguments, self.folder / "whole")
        self.assertIn("1 directions: en-fr\ntrain: 20 pairs\n", whole)
        self.assertEqual(whole.count("\n  source "), 3)
        self.assertRegex(whole, r"BLEU nrefs:1\|case:mixed\|eff:no\|tok:13a\|smooth:exp\|version:[\d.]+: en-fr\n")
        source, translation = re.search(r"  source     (.*)\n  reference  .*\n  dense      (.*)", whole).groups()
        served = self.folder / "whole" / "dense-served"
        self.check_served(
            served, source, translation, language=[], wrong_language=["--to", "fr"], message="leave --to out"
        )
        parts, interrupted = self.folder / "parts", self.folder / "interrupted.py"
        interrupted.write_text(INTERRUPTED)
        with self.assertRaises(KeyboardInterrupt):
            self.run_example(*arguments, parts, example=interrupted)
        self.assertFalse((parts / "table.md").exists())
        self.assertTrue((parts / "dense-checkpoints" / "state.json").exists())
        rest = self.run_example(*arguments, parts)
        self.assertIn("dense, step 6: perplexity", rest)
        for file in ("table.md", "dense-checkpoints/best.json"):
            self.assertEqual((parts / file).read_text(), (self.folder / "whole" / file).read_text())
        again = self.run_example(*arguments, parts)  # goes on after the last step
        self.assertNotIn("step 3:", again)
        self.assertEqual(again.splitlines()[-8:-2], whole.splitlines()[-8:-2])

    def test_a_model_for_each_direction(self):
        output = self.folder / "pairs"
        arguments = ["--data", self.aligned(), "--multilingual", "--smoke", "--models", "moe-pairs", "dense-pairs"]
        with eagerly():
            out = self.run_example(*arguments, "--output", output)
        self.assertIn("2 directions: en-fr fr-en\ntrain: 40 pairs\n", out)
        columns = (f"{model}-pairs: {number}" for model in ("moe", "dense") for number in ("exact match", "BLEU"))
        self.assertIn(f"| direction | {' | '.join(columns)} |\n", out)
        means = []
        for model in ("moe", "dense"):
            perplexities = []
            for pair in ("en-fr", "fr-en"):
                self.assertRegex(out, rf"{model}-{pair}: [\d,]+ parameters, [\d,]+ ops/timestep\n")
                self.assertRegex(out, rf"{model}-{pair}, step 2: perplexity")
                self.assertRegex(out, rf"{model}-{pair}, {pair}: BLEU [\d.]+\n")
                self.assertRegex(out, rf"\| {pair}( \| [\d.]+ % \| [\d.]+){{2}} \|\n")
                best = json.loads((output / f"{model}-{pair}-checkpoints" / "best.json").read_text())
                perplexities.append(best["perplexity"])
            self.assertNotEqual(*perplexities)  # each was trained on its own direction
            means.append(f"{model}-pairs {np.sqrt(np.prod(perplexities)):.3f}")
        self.assertIn(f"validation perplexity: {', '.join(means)}\n", out)

    def test_a_tiny_run_has_an_output_of_its_own(self):
        parse = load(EXAMPLE).parse_arguments
        self.assertNotEqual(parse(["--smoke"]).output, parse([]).output)
        self.assertEqual(parse(["--smoke", "--output", "here"]).output, Path("here"))

    def test_wrong_arguments_and_files_are_explained(self):
        data, blank, short = self.aligned(), self.aligned("blank"), self.aligned("short")
        write(blank / "val.fr.gz", [""] * 20)
        write(short / "train.fr.gz", ["a"] * 19)
        several = self.aligned("several", parts=("train", "val", "test_1", "test_2"))
        pair = ["--source", "en", "--target", "fr"]
        cases = (
            (["--data", self.folder / "no", *pair], "No such directory: '/.*no'"),
            (["--data", self.folder, "--source", "en"], "--data needs either --source and --target, or --multilingual"),
            (["--data", data, *pair, "--multilingual"], "--data needs either"),
            (["--data", data, "--source", "en", "--multilingual"], "leave --source and --target out, or see --pivot"),
            (["--data", data, *pair, "--pivot", "en"], "--pivot is for --multilingual"),
            (["--data", data, *pair, "--models", "dense-pairs"], "of one direction they are moe and dense"),
            (["--multilingual"], "other ones need --data"),
            (["--data", data, "--source", "en", "--target", "de"], r"target must be one of \['en', 'fr'\].*'de'"),
            (["--data", data, "--multilingual", "--pivot", "ja"], "pivot='ja'"),
            (["--data", short, *pair], r"aligned, line by line.*train.en.gz', '.*train.fr.gz' with 20, 19 lines"),
            (["--data", blank, *pair], "No pairs of lines in .*val.fr.gz'.*20 pairs have a blank side"),
            (["--data", several, *pair], r"Several test files: \['test_1', 'test_2'\]. Choose one"),
            (["--data", several, *pair, "--test", "test_3"], r"test must be one of .*test='test_3'"),
            (["--data", data, *pair, "--pieces", "261"], "No pieces can be learned.*size=261"),
            (["--data", data, *pair, "--k", "99"], "k cannot exceed the number of experts.*k=99"),
            (["--limit", "300"], "--limit must be at least 700, .*Received: --limit 300"),
            (["--steps", "0"], "must be at least 1, not 0"),
            (["--dropout", "1"], "from 0 to under 1"),
        )
        main = load(EXAMPLE).main
        for arguments, pattern in cases:
            stderr, stdout = io.StringIO(), io.StringIO()
            with self.assertRaises(SystemExit) as error, redirect_stderr(stderr), redirect_stdout(stdout):
                main([*map(str, arguments), "--output", str(self.folder / "output")])
            self.assertRegex(f"{stderr.getvalue()}{error.exception.code}", pattern)
        self.assertFalse((self.folder / "output" / "table.md").exists())
