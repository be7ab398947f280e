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

import table
from arguments import parse_arguments
from corpora import Data, load
from figures import PLOTS
from runs import Run, choose
from train import train

SETTINGS = ("steps", "batch", "time", "rate", "dropout", "points", "patience", "held_out")


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
    options = parse_arguments(arguments, __doc__)
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
