"""The arguments of the command line."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from runs import STUDIES

from tf_moe.models import PAPER

# What a study has where nothing is asked for: training steps, and looks at the validation text.
STEPS = {"family": 2000, "budgets": 1000, "balance": 500, "ablations": 1000, "gates": 1000, "low_resource": 600}
POINTS = {"low_resource": 12}


def parse_arguments(arguments: Sequence[str] | None = None, description: str | None = None) -> argparse.Namespace:
    """The options of a run, filled in where they depend on others.

    Args:
        arguments: Those of the command line. Default None: this program's own.
        description: What `--help` says first.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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


# `positive` and `share` are as in examples/common.py, which no program of this folder finds: it looks in its own.
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
