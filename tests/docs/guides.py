"""The repository's Markdown files as pages beside those of the modules."""

import re
import types

import pdoc.doc

from tests import ROOT

GUIDES = {
    "readme": "README.md",
    "tutorial": "examples/tutorial.md",
    "examples": "examples/README.md",
    "clusters": "examples/clusters.md",
    "scaling": "examples/scaling.md",
    "benchmarks": "examples/benchmarks/README.md",
    "report": "examples/paper/report.md",
    "building": "BUILD.md",
    "changelog": "CHANGELOG.md",
}
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?!https?:)(?P<file>[^)#\s]+)(?P<anchor>#[^)\s]+)?\)")  # not to itself


def guide_page(name: str, package: str) -> pdoc.doc.Module:
    """One of `GUIDES` as a page of a package, its pictures inside; links to what is no page become text."""
    file = ROOT / GUIDES[name]
    names = {ROOT / path: other for other, path in GUIDES.items()}

    def lead_to_page(link: re.Match) -> str:
        target = names.get((file.parent / link["file"]).resolve())
        return f"[{link['text']}]({target}.html{link['anchor'] or ''})" if target else link["text"]

    module = types.ModuleType(f"{package}.{name}", LINK.sub(lead_to_page, file.read_text(encoding="utf-8")))
    module.__docformat__ = "markdown"
    page = pdoc.doc.Module(module)
    page.source_file = file  # pictures are looked for beside it
    return page
