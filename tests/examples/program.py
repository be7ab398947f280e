"""Examples run from their command line: in this process, where most of the time would be the import of TensorFlow."""

import contextlib
import io
import runpy
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import tensorflow as tf

from tests import ROOT

EXAMPLES = ROOT / "examples"


class Outcome(NamedTuple):
    """What a program left, named as in `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


def run(example: Path, *arguments: object) -> Outcome:
    """Run a program, a file or a folder, as `python example arguments...` does; its exceptions are raised here.

    Modules of the examples are imported anew each time: several folders have one of the same name.
    """
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    folder = example if example.is_dir() else example.parent
    with (
        mock.patch.object(sys, "argv", [str(example), *map(str, arguments)]),
        _imports_from(folder),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            runpy.run_path(str(example), run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code or 0
            if isinstance(code, str):
                stderr.write(code)
                code = 1
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


def load(example: Path) -> SimpleNamespace:
    """What a program defines, without running it, to call its parts."""
    with _imports_from(example.parent):
        return SimpleNamespace(**runpy.run_path(str(example)))


def table_rows(text, *first_cells):
    """The cells of the rows of Markdown tables that begin with these."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0] in first_cells]


@contextlib.contextmanager
def eagerly():
    """Nothing is traced: for programs that take a few steps only, and whose graphs are those of another test."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Even though the `tf.config.experimental_run_functions_eagerly`")  # tf.data's
        tf.config.run_functions_eagerly(True)
        try:
            yield
        finally:
            tf.config.run_functions_eagerly(False)


@contextlib.contextmanager
def _imports_from(folder: Path):
    with mock.patch.object(sys, "path", [str(folder), *sys.path]):
        try:
            yield
        finally:
            for name, module in list(sys.modules.items()):
                # A folder of modules has no file.
                if str(EXAMPLES) in f"{getattr(module, '__file__', None)} {getattr(module, '__path__', None)}":
                    del sys.modules[name]
