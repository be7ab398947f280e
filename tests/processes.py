"""Python in processes of its own: with the sources of these tests, wherever they start, and in no cluster."""

import os
import subprocess
import sys
from pathlib import Path

from tests import ROOT
from tests.text.files import new_folder
from tf_moe.distribute.cluster import DEVICES_VARIABLE


def environment(**variables: str) -> dict[str, str]:
    """The variables of this process, and these, without what a test or the launcher may have left of a cluster."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("TF_CONFIG", DEVICES_VARIABLE)}
    return {**inherited, **variables, "PYTHONPATH": str(ROOT)}


def run_python(*arguments: object, code: int | None = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python to its end, in `environment(**variables)`; it fails unless it ends with this code (None: with any)."""
    command = [sys.executable, *map(str, arguments)]
    # The limit is for what hangs: on a busy machine all takes many times as long.
    process = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=1800)
    if code not in (None, process.returncode):
        written = process.stdout + process.stderr
        raise AssertionError(f"It ended with code {process.returncode}, not {code}:\n{written[-6000:]}")
    return process


def write_script(test, body: str, name: str = "script.py") -> Path:
    """A file in a new folder, until the test has ended."""
    script = new_folder(test) / name
    script.write_text(body)
    return script
