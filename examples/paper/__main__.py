"""The paper's experiments in small: networks of its tables at a smaller width, on text or on a generated language.

    python examples/paper family
    python examples/paper family --networks MoE-4 MoE-256 --corpus wikitext2 --words 8192 --seeds 3
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
from runs import STUDIES
from train import train

from tf_moe.models import PAPER


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--networks", nargs="+", choices=PAPER, help="default: those of the study")
    parser.add_argument("--variants", nargs="+", help='some of the study\'s, such as "no sigmoid" (default: all)')
    parser.add_argument(
        "--corpus",
        default="generated",
        help='"generated", "python" (the standard library), or a directory of text files (default: %(default)s)',
    )
    add = parser.add_argument
    add("--words", default=512, type=int, help="of the generated language, or of the vocabulary (default: %(default)s)")
    add("--facts", default=0.9, type=float, help="share of generated words set by a fact (default: %(default)s)")
    add("--exponent", default=0.7, type=float, help="of the generated words' Zipf law (default: %(default)s)")
    add("--width", default=64, type=int, help="of the networks, 512 in most of the paper's (default: %(default)s)")
    add("--steps", default=2000, type=int, help="of training (default: %(default)s)")
    add("--batch", default=128, type=int, help="sequences in a batch (default: %(default)s)")
    add("--time", default=32, type=int, help="words of a sequence (default: %(default)s)")
    add("--rate", default=8e-3, type=float, help="highest learning rate (default: %(default)s)")
    add("--factored", action="store_true", help="FactoredAdam for the experts, as in appendix D")
    add("--dropout", type=float, help="default: 0 for the generated language, each network's own for text")
    add("--seeds", default=1, type=int, help="runs of each (default: %(default)s)")
    add("--grid", action="store_true", help="balance: all 25 pairs of weights instead of the paper's six")
    add("--points", default=6, type=int, help="looks at the validation text during a run (default: %(default)s)")
    add(
        "--held-out", default=8, type=int, help="generated batches, of 4 times the size, to test (default: %(default)s)"
    )
    add("--output", default="runs/paper", type=Path, metavar="DIR", help="default: %(default)s")
    add("--smoke", action="store_true", help="a tiny run, to see that all works")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.width, options.steps, options.batch, options.time, options.points = 16, 4, 4, 8, 2
        options.words, options.held_out = min(options.words, 40), 1
    if options.dropout is None and options.corpus == "generated":
        options.dropout = 0.0
    return options


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    try:
        data = load(options)
    except (ValueError, OSError) as error:  # a wrong argument or an unusable text: the message says what to do
        sys.exit(f"examples/paper: {error}")
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "table.csv"
    runs = [run for run in STUDIES[options.study](options) if run.variant in (options.variants or [run.variant])]
    if not runs:
        variants = sorted({run.variant for run in STUDIES[options.study](options)})
        sys.exit(f"examples/paper: --variants must be some of {variants}. Received: {options.variants}.")
    runs = [dataclasses.replace(run, seed=seed) for seed in range(options.seeds) for run in runs]
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


def key_of(run, corpus: str, options) -> dict:
    """The columns that say what was run."""
    return {
        "study": options.study,
        "network": run.network,
        "variant": run.variant,
        "seed": run.seed,
        "corpus": corpus,
        "optimizer": "factored" if options.factored else "adam",
        **{name: getattr(options, name) for name in ("width", "steps", "batch", "time", "rate", "dropout")},
    }


if __name__ == "__main__":
    main()
