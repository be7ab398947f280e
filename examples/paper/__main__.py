"""The paper's experiments in small: networks of its tables at a smaller width, on text or on a generated language.

    python examples/paper family
    python examples/paper family --networks MoE-4 MoE-256 --corpus wikitext2 --seeds 3
    python examples/paper balance
    python examples/paper ablations
    python examples/paper gates
    python examples/paper budgets
    python examples/paper low_resource --corpus wikitext2

Every run adds a row to `table.csv` in the output directory, where one that is there already is not run again: started
once more after an interruption, the command goes on. The figures are drawn from that table.
"""

import argparse
import sys
from pathlib import Path

import table
from corpora import Data, load
from figures import PLOTS
from runs import STUDIES, Run, choose
from train import train

from tf_moe.models import PAPER

SETTINGS = ("steps", "batch", "time", "rate", "dropout", "points", "patience", "held_out")
# What a study has where nothing is asked for: training steps, and looks at the validation text.
STEPS = {"family": 2000, "budgets": 1000, "balance": 500, "ablations": 1000, "gates": 1000, "low_resource": 600}
POINTS = {"low_resource": 12}


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
    add("--steps", type=positive, help=f"of training at most (default: {STEPS})")
    add("--batch", default=128, type=positive, help="sequences in a batch (default: %(default)s)")
    add("--time", default=32, type=positive, help="words of a sequence (default: %(default)s)")
    add("--rate", default=8e-3, type=float, help="highest learning rate (default: %(default)s)")
    add("--factored", action="store_true", help="FactoredAdam for the experts, as in appendix D")
    add("--dropout", type=share, help="default: 0 for the generated language, each network's own for text")
    add("--seeds", default=1, type=positive, help="runs of each (default: %(default)s)")
    add("--grid", action="store_true", help="balance: all 25 pairs of weights instead of the paper's six")
    add("--fractions", nargs="+", type=fraction, default=(1 / 16, 1 / 4, 1.0), help="low_resource: shares of the text")
    add("--points", type=positive, help="looks at the validation text during a run (default: 5, low_resource 12)")
    add("--patience", default=3, type=positive, help="looks without progress that end a run (default: %(default)s)")
    add("--output", default="runs/paper", type=Path, metavar="DIR", help="default: %(default)s")
    add("--smoke", action="store_true", help="a tiny run, to see that all works")
    options = parser.parse_args(arguments)
    if options.words is None:
        options.words = 512 if options.corpus == "generated" else 8192
    options.steps = options.steps or STEPS[options.study]
    options.points = options.points or POINTS.get(options.study, 5)
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


def fraction(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be over 0 and at most 1, not {value}")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to under 1, not {value}")
    return value


def key_of(run: Run, data: Data, options: argparse.Namespace) -> dict:
    """The columns that say what was run."""
    return {
        "study": options.study,
        "network": run.network,
        "variant": run.variant,
        "seed": run.seed,
        "corpus": data.name,
        table.TEXT: data.digest,
        "fraction": run.fraction,
        "width": run.width,
        "optimizer": "factored" if options.factored else "adam",
        **{name: getattr(options, name) for name in SETTINGS},
    }


def title_of(corpus: str, runs: list[Run], options: argparse.Namespace) -> str:
    widths = sorted({run.width for run in runs})
    return f"{corpus}, width {' to '.join(map(str, dict.fromkeys((widths[0], widths[-1]))))}, {options.steps} steps"


def describe(run: Run) -> str:
    share = f"{run.fraction:.3g} of the text" if run.fraction < 1 else ""
    return ", ".join(filter(None, (run.network, run.variant, f"width {run.width}", share, f"seed {run.seed}")))


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    file = options.output / "table.csv"
    try:
        runs = choose(options)
        table.read(file)
        data = load(options)
        options.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:  # a wrong argument or an unusable text: the message says what to do
        sys.exit(f"examples/paper: {error}")
    keys = []
    for number, run in enumerate(runs, 1):
        keys.append(key_of(run, data, options))
        name = describe(run)
        if table.is_done(keys[-1], table.read(file)):
            print(f"[{number}/{len(runs)}] {name}: done before", flush=True)
            continue
        print(f"[{number}/{len(runs)}] {name}", flush=True)
        row = train(run, data, options)
        table.append(file, keys[-1] | row)
        print(f"test perplexity {row['test_perplexity']:.2f}, {row['seconds']} s", flush=True)
    rows = [row for row in table.read(file) if any(table.is_done(key, [row]) for key in keys)]
    PLOTS[options.study](rows, options.output, title_of(data.name, runs, options))
    print(table.show(rows))


if __name__ == "__main__":
    main()
