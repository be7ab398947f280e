"""The paper's experiments in small: networks of its tables at a smaller width, on text or on a generated language.

    python examples/paper family
    python examples/paper family --networks MoE-4 MoE-256 --corpus wikitext2 --seeds 3
    python examples/paper balance
    python examples/paper ablations

Every run adds a row to `table.csv` in the output directory, where one that is there already is not run again: started
once more after an interruption, the command goes on. The figures are drawn from that table.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import table
from corpora import load
from figures import PLOTS
from runs import STUDIES, Run
from train import train

from tf_moe.models import PAPER

SETTINGS = ("width", "steps", "batch", "time", "rate", "dropout", "points", "held_out")


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--networks", nargs="+", choices=PAPER, help="default: those of the study")
    parser.add_argument("--variants", nargs="+", help='some of the study\'s, such as "no sigmoid" (default: all)')
    corpora = '"generated", "python" (the standard library), or a directory of text files (default: %(default)s)'
    parser.add_argument("--corpus", default="generated", help=corpora)
    add = parser.add_argument
    add("--words", type=positive, help="of the generated language (default: 512) or the vocabulary (default: 8192)")
    add("--facts", default=0.9, type=float, help="share of generated words set by a fact (default: %(default)s)")
    add("--exponent", default=0.7, type=float, help="of the generated words' Zipf law (default: %(default)s)")
    add(
        "--held-out",
        default=8,
        type=positive,
        help="generated batches to test, 4 times as large (default: %(default)s)",
    )
    add("--width", default=64, type=positive, help="of networks that have 512 in the paper (default: %(default)s)")
    add("--steps", default=2000, type=positive, help="of training (default: %(default)s)")
    add("--batch", default=128, type=positive, help="sequences in a batch (default: %(default)s)")
    add("--time", default=32, type=positive, help="words of a sequence (default: %(default)s)")
    add("--rate", default=8e-3, type=float, help="highest learning rate (default: %(default)s)")
    add("--factored", action="store_true", help="FactoredAdam for the experts, as in appendix D")
    add("--dropout", type=float, help="default: 0 for the generated language, each network's own for text")
    add("--seeds", default=1, type=positive, help="runs of each (default: %(default)s)")
    add("--grid", action="store_true", help="balance: all 25 pairs of weights instead of the paper's six")
    add("--points", default=5, type=positive, help="looks at the validation text during a run (default: %(default)s)")
    add("--output", default="runs/paper", type=Path, metavar="DIR", help="default: %(default)s")
    add("--smoke", action="store_true", help="a tiny run, to see that all works")
    options = parser.parse_args(arguments)
    if options.words is None:
        options.words = 512 if options.corpus == "generated" else 8192
    if options.smoke:
        options.width, options.steps, options.batch, options.time, options.points = 16, 4, 4, 8, 2
        options.words, options.held_out = min(options.words, 40), 1
    if options.dropout is None and options.corpus == "generated":
        options.dropout = 0.0
    return options


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def choose_runs(options: argparse.Namespace) -> list[Run]:
    """The runs of the study, or some of its variants, for every seed."""
    runs = STUDIES[options.study](options)
    if options.variants:
        known = {run.variant for run in runs}
        if not known.issuperset(options.variants):
            raise ValueError(f"--variants must be some of {sorted(known)}. Received: {options.variants}.")
        runs = [run for run in runs if run.variant in options.variants]
    return [dataclasses.replace(run, seed=seed) for seed in range(options.seeds) for run in runs]


def key_of(run: Run, corpus: str, options: argparse.Namespace) -> dict:
    """The columns that say what was run."""
    return {
        "study": options.study,
        "network": run.network,
        "variant": run.variant,
        "seed": run.seed,
        "corpus": corpus,
        "optimizer": "factored" if options.factored else "adam",
        **{name: getattr(options, name) for name in SETTINGS},
    }


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    file = options.output / "table.csv"
    try:
        runs = choose_runs(options)
        table.read(file)
        data = load(options)
    except (ValueError, OSError) as error:  # a wrong argument or an unusable text: the message says what to do
        sys.exit(f"examples/paper: {error}")
    options.output.mkdir(parents=True, exist_ok=True)
    keys = []
    for number, run in enumerate(runs, 1):
        keys.append(key_of(run, data.name, options))
        name = " ".join(filter(None, (run.network, run.variant, f"seed {run.seed}")))
        if table.is_done(keys[-1], table.read(file)):
            print(f"[{number}/{len(runs)}] {name}: done before", flush=True)
            continue
        print(f"[{number}/{len(runs)}] {name}", flush=True)
        row = train(run, data, options)
        table.append(file, keys[-1] | row)
        print(f"test perplexity {row['test_perplexity']:.2f}, {row['seconds']} s", flush=True)
    rows = [row for row in table.read(file) if any(table.is_done(key, [row]) for key in keys)]
    PLOTS[options.study](rows, options.output, f"{data.name}, width {options.width}, {options.steps} steps")
    print(table.show(rows))


if __name__ == "__main__":
    main()
