import re
from pathlib import Path

from absl.testing import parameterized

from tests import ROOT
from tests.docs.base import ExamplesTestCase
from tests.docs.examples import blocks, run_block

PAGES = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("examples/**/*.md")])


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings, by which a link can name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


class PagesTest(ExamplesTestCase):
    def test_blocks_of_the_readme(self):
        found = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
        self.assertLen(found, 3)
        for block in found:  # each goes on from the one before
            run_block(block, self.names, "README")
        self.assertTrue(Path("model.keras").exists())

    def test_block_for_clusters(self):
        # It has to be in a Slurm job to run: see test_cluster.py.
        (block,) = blocks((ROOT / "examples" / "clusters.md").read_text(encoding="utf-8"))
        compile(block, "clusters.md", "exec")

    @parameterized.parameters(PAGES)
    def test_links(self, name):
        page = ROOT / name
        links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8"))
        for link in links:
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            self.assertTrue(target.exists(), f"{name} links to {link}")
            if anchor:
                self.assertIn(anchor, anchors(target), f"{name} links to {link}")
