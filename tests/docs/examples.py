"""Running what a text shows: sessions with `>>>`, and fenced blocks of Python."""

import ast
import doctest
import io
import re

_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_FENCED = re.compile(r"^```(?P<language>\w*)\n(?P<block>.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(text: str) -> list[str]:
    """The fenced blocks of Python."""
    return [match["block"] for match in _FENCED.finditer(text) if match["language"] == "python"]


def run(text: str, names: dict, title: str) -> int:
    """Runs all examples of a text, in their order, with and in `names`; how many there are.

    Raises:
        AssertionError: A session does not print what the text says.
    """
    count, end = 0, 0
    for match in [*_FENCED.finditer(text), None]:
        count += _run_session(text[end : match.start() if match else None], names, title)
        if match and match["language"] == "python":
            run_block(match["block"], names, title)
            count += 1
        end = match.end() if match else None
    return count


def run_block(block: str | ast.Module, names: dict, title: str) -> None:
    """Runs Python code with and in `names`."""
    exec(compile(block, f"<{title}>", "exec"), names)


def _run_session(text: str, names: dict, title: str) -> int:
    test = doctest.DocTestParser().get_doctest(text, {}, title, None, None)
    test.globs = names  # itself, not the copy that get_doctest makes
    told = io.StringIO()
    failed = doctest.DocTestRunner(optionflags=_FLAGS).run(test, out=told.write, clear_globs=False).failed
    if failed:
        raise AssertionError(told.getvalue())
    return len(test.examples)
