"""Trains the paper's translation model, or it beside a dense one of equal multiply-adds, tests, and exports.

Without arguments one model learns to translate numbers written in words in the paper's twelve directions, English to
and from French, German, Japanese, Korean, Portuguese and Spanish, and is tested on numbers that it has not seen in any.
With `--data`, files aligned by line: `train.en.gz`, `train.fr.gz`, `val.en.gz` and so on, or `news.en` and `news.fr`
alone.

    python examples/translation.py
    python examples/translation.py --data multi30k --source en --target fr
    python examples/translation.py --data multi30k --multilingual

    python examples/translation.py --data multi30k --multilingual --models moe dense dense-pairs

The last trains a dense model for each direction too, as the paper's Table 5 compares.

The model is that of appendix E but for its sizes, and for the sigmoid after each mixture, without which it learns more
quickly (`--activation sigmoid` puts it back); trained by Adam with a cosine in the place of the paper's schedule, with
clipping and, for files, label smoothing; `--gate strictly_balanced` is the paper's for one pair of languages.

It prints a table of BLEU by direction, with the signatures that say how it was computed, and some translations. The
models go to `--output`, each with its pieces as a SavedModel from strings to strings, see `examples/serve.py`; so do
pages of what each expert is for. Started again after an interruption, the same command goes on.
"""

import argparse
import sys
import time
from pathlib import Path

import keras
from common import positive, share
from translating.data import Data, by_direction, load
from translating.experts import write_experts
from translating.export import export
from translating.score import Outcome, import_sacrebleu, score, show_examples, show_table
from translating.train import network_of, train

from tf_moe.models import TranslationNetwork, Translator


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    number = {"type": positive, "metavar": "N"}
    add("--data", type=Path, metavar="DIR", help="directory of aligned files (default: numbers in words)")
    add("--limit", default=10_000, help="numbers in words are below this (default: %(default)s)", **number)
    add("--source", metavar="LANGUAGE", help="to translate from, where not --multilingual")
    add("--target", metavar="LANGUAGE", help="to translate into")
    add("--multilingual", action="store_true", help="one model for all directions of --data")
    add("--pivot", metavar="LANGUAGE", help="of these directions only those to and from this language")
    add("--test", metavar="NAME", help="test files, such as test_2016_flickr; needed where there are several")
    both, pairs = ("moe", "dense"), ("moe-pairs", "dense-pairs")
    add("--models", nargs="+", choices=both + pairs, help="default: moe for numbers, moe and dense for files")
    add("--gate", default="noisy_top_k", choices=("noisy_top_k", "strictly_balanced"), help="default: %(default)s")
    activations = ("sigmoid", "linear")
    add("--activation", default="linear", choices=activations, help="of a mixture's output (default: %(default)s)")
    scores = ("product", "additive")
    add("--attention", default="product", choices=scores, help="the paper's or GNMT's (default: %(default)s)")
    for name, (for_numbers, for_files, kind, meaning) in SETTINGS.items():
        options = {"nargs": 2} if isinstance(for_files, list) else {}
        default = f"{for_numbers} for numbers, {for_files} for files".replace("[2, 2]", "2 2")
        add(f"--{name}", type=kind, metavar="N", help=f"{meaning} (default: {default})", **options)
    add("--pair-steps", help="of moe-pairs and dense-pairs, of each direction (default: --steps)", **number)
    add("--save-every", default=200, help="steps, to go on from (default: %(default)s)", **number)
    add("--coverage", default=1.0, type=float, help="share of characters that get pieces (default: %(default)s)")
    add("--seed", default=0, type=int, help="of weights, noise and order (default: %(default)s)")
    add("--output", type=Path, metavar="DIR", help="default: runs/translation, with --smoke runs/translation_smoke")
    add("--smoke", action="store_true", help="a tiny run, to see that all works")
    options = parser.parse_args(arguments)
    one_direction = bool(options.source and options.target)
    if options.data and one_direction == options.multilingual:
        parser.error("--data needs either --source and --target, or --multilingual")
    if options.multilingual and (options.source or options.target):
        parser.error("--multilingual takes all directions: leave --source and --target out, or see --pivot")
    if options.pivot and one_direction:
        parser.error("--pivot is for --multilingual")
    if not options.data and (options.source or options.target or options.multilingual or options.pivot or options.test):
        parser.error("numbers come in the paper's twelve directions: other ones need --data")
    if one_direction and set(pairs).intersection(options.models or ()):
        parser.error(f"{' and '.join(pairs)} are many models: of one direction they are moe and dense")
    # Where a tiny run has been, a real one could not go on.
    options.output = options.output or Path("runs/translation_smoke" if options.smoke else "runs/translation")
    options.models = options.models or (both if options.data else ("moe",))
    for name, (for_numbers, for_files, _, _) in SETTINGS.items():
        if getattr(options, name) is None:
            setattr(options, name, for_files if options.data else for_numbers)
    options.pair_steps = options.pair_steps or options.steps
    if options.smoke:
        options.limit, options.width, options.units, options.hidden, options.experts = 400, 16, 16, 16, 4
        options.steps, options.points, options.tokens, options.longest, options.save_every = 6, 2, 256, 32, 3
        options.pair_steps = 2
    return options


# Name: (for numbers in words, for files, type, meaning).
SETTINGS = {
    "experts": (8, 16, positive, "of each mixture"),
    "k": (2, 2, positive, "experts for each word piece"),
    "width": (128, 256, positive, "of embedding and layers"),
    "units": (128, 256, positive, "of each LSTM"),
    "hidden": (128, 256, positive, "of each expert"),
    "layers": ([2, 2], [2, 2], positive, "LSTMs of encoder and decoder"),
    "pieces": (500, 4000, positive, "of all languages, at most"),
    "steps": (2500, 4400, positive, "of training"),
    "tokens": (1024, 1024, positive, "of a batch, on each side"),
    "rate": (4e-3, 2e-3, float, "highest learning rate, of Adam"),
    "dropout": (0.0, 0.2, share, "share of activations"),
    "smoothing": (0.0, 0.1, share, "of labels"),
    "beam": (2, 4, positive, "hypotheses of the search"),
    "points": (10, 11, positive, "looks at the validation text; the best counts"),
    "longest": (32, 64, positive, "pieces of a sentence at most, on each side"),
}


def build(network: TranslationNetwork, name: str, data: Data, options: argparse.Namespace) -> Translator:
    """A model with new weights."""
    keras.utils.set_random_seed(options.seed)
    print(f"{name}: {network.parameters:,} parameters, {network.ops_per_timestep:,} ops/timestep")
    return network.build(len(data.pieces), name=name, output_activation=options.activation, attention=options.attention)


def run(network: TranslationNetwork, name: str, data: Data, options: argparse.Namespace) -> list[Outcome]:
    """Train, test and export one model, or train and test one for each direction."""
    if name.endswith("-pairs"):
        outcomes = []
        for direction, alone in by_direction(data, options):
            model = build(network, f"{name.removesuffix('-pairs')}-{direction}", data, options)
            outcomes += train_and_test(model, alone, options, options.pair_steps)
        return outcomes
    model = build(network, name, data, options)
    outcomes = train_and_test(model, data, options, options.steps)
    model.save(options.output / f"{name}.keras")
    export(model, data.pieces, options, options.output / f"{name}-served")
    if name == "moe":
        write_experts(model, data.pieces, data.validation, options.output)
    return outcomes


def train_and_test(model: Translator, data: Data, options: argparse.Namespace, steps: int) -> list[Outcome]:
    """Train a model, and test it in each of the data's directions."""
    keras.utils.set_random_seed(options.seed)
    perplexity, outcomes = train(model, data, options, steps), []
    for text in data.parts["test"]:
        outcomes.append(score(model, text, data.pieces, perplexity, options))
        print(f"{model.name}, {outcomes[-1].direction}: BLEU {outcomes[-1].bleu:.2f}", flush=True)
    return outcomes


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    started = time.perf_counter()
    try:
        import_sacrebleu()  # before the training, not after
        network = network_of(options)
        networks = {"moe": network, "dense": network.dense_twin()}
        data = load(options)
        outcomes = {
            name: run(networks[name.removesuffix("-pairs")], name, data, options)
            for name in dict.fromkeys(options.models)
        }
    except (ValueError, OSError, ImportError) as error:  # the message says what to do
        sys.exit(f"examples/translation.py: {error}")
    table = show_table(outcomes)
    (options.output / "table.md").write_text(table + "\n", encoding="utf-8")
    print(f"\n{show_examples(outcomes)}\n{table}")
    print(f"\n{time.perf_counter() - started:.0f} s; models, pieces and table are in {options.output}")


if __name__ == "__main__":
    main()
