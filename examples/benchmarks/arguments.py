"""The arguments that the benchmarks of this folder share."""

import argparse


def make_parser(doc: str, **numbers: int | list[int]) -> argparse.ArgumentParser:
    """A parser that shows `doc`, with an option for each positive integer, or for some where the default is a list."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in numbers.items():
        nargs = "+" if isinstance(default, list) else None
        parser.add_argument(f"--{name}", nargs=nargs, type=positive, default=default, help="default: %(default)s")
    return parser


# As in examples/common.py, which no program of this folder finds: it looks in its own.
def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None, **smoke: object) -> argparse.Namespace:
    """Parse with one more option, `--smoke`, which puts the values of `smoke` in place of what was asked for."""
    parser.add_argument("--smoke", action="store_true", help="a tiny run, to see that all works")
    options = parser.parse_args(arguments)
    if options.smoke:
        vars(options).update(smoke)
    return options
