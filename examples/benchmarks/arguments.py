"""The arguments that the benchmarks of this folder share."""

import argparse


def make_parser(doc: str, **numbers: int | list[int]) -> argparse.ArgumentParser:
    """A parser that shows `doc`, with an option for each integer, or for one or more where the default is a list."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in numbers.items():
        nargs = "+" if isinstance(default, list) else None
        parser.add_argument(f"--{name}", nargs=nargs, type=int, default=default, help="default: %(default)s")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None, **smoke: object) -> argparse.Namespace:
    """Parse with one more option, `--smoke`, which puts the values of `smoke` in place of what was asked for."""
    parser.add_argument("--smoke", action="store_true", help="a tiny run, to see that all works")
    options = parser.parse_args(arguments)
    if options.smoke:
        vars(options).update(smoke)
    return options
