"""The blocks of the tutorial and what they print; `python -m tests.docs.tutorial` writes that into it."""

import contextlib
import io
import re
import tempfile
from pathlib import Path

from tests import ROOT
from tests.docs.examples import run_block
from tests.processes import run_python

TUTORIAL = ROOT / "examples" / "tutorial.md"
# A block, and below it what it printed, if that stands there.
_STEP = re.compile(r"```python\n(?P<block>.*?)```\n(\n```text\n(?P<printed>.*?)```\n)?", re.DOTALL)


def steps(text: str) -> list[tuple[str, str]]:
    """The blocks, and what the tutorial says that they print."""
    return [(step["block"], step["printed"] or "") for step in _STEP.finditer(text)]


def run_steps(blocks: list[str]) -> list[str]:
    """What the blocks print: all but the last in this process, one after another; the last in one of its own."""
    *session, script = blocks
    names, printed = {"__name__": "__main__"}, []
    for number, block in enumerate(session, 1):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            run_block(block, names, f"tutorial, step {number}")
        printed.append(output.getvalue())
    Path("two_devices.py").write_text(script, encoding="utf-8")
    return [*printed, run_python("two_devices.py", TF_CPP_MIN_LOG_LEVEL="3").stdout]


def write() -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        outputs = iter(run_steps([block for block, _ in steps(text)]))
    text = _STEP.sub(lambda step: f"```python\n{step['block']}```\n\n```text\n{next(outputs)}```\n", text)
    TUTORIAL.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
