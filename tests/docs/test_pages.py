import html.parser
from urllib.parse import unquote, urldefrag

from tests import ROOT
from tests.base import TestCase
from tests.docs.guides import GUIDES
from tests.docs.public import public_names
from tests.processes import run_python
from tests.text.files import new_folder


class Page(html.parser.HTMLParser):
    """The anchors of a page, where its links lead, and what pictures it shows."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.pictures = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.add(attributes.get("id"))
        if tag == "a" and "://" not in attributes.get("href", "://"):
            self.links.add(unquote(attributes["href"]))
        if tag == "img":
            self.pictures.add(attributes["src"])


class PagesTest(TestCase):
    """The pages as `python -m tests.docs` builds them."""

    def test_pages(self):
        folder = new_folder(self).resolve()
        built = run_python("-m", "tests.docs", folder, TF_CPP_MIN_LOG_LEVEL="3")
        self.assertNotIn("Warning", built.stderr)
        pages = {file: Page(file.read_text(encoding="utf-8")) for file in folder.rglob("*.html")}
        for name in public_names():
            module, _, short = name.rpartition(".")
            self.assertIn(short, pages[folder / f"{module.replace('.', '/')}.html"].anchors)
        self.assertIn("10-two-devices", pages[folder / "tf_moe" / "tutorial.html"].anchors)
        self.assertIn("tutorial.html", pages[folder / "tf_moe" / "readme.html"].links)
        for file, page in pages.items():
            for link in page.links:
                path, anchor = urldefrag(link)
                target = (file.parent / path).resolve() if path else file
                self.assertIn(target, pages, f"{file.name}: {link}")
                self.assertIn(anchor or None, pages[target].anchors, f"{file.name}: {link}")
            for picture in page.pictures:
                self.assertStartsWith(picture, "data:image/", file.name)
        self.assertGreater(len(pages[folder / "tf_moe" / "report.html"].pictures), 1)  # the attribution of pdoc is one

    def test_every_markdown_file_is_a_guide(self):
        files = [*ROOT.glob("*.md"), *ROOT.glob("examples/**/*.md")]
        self.assertCountEqual(GUIDES.values(), [str(file.relative_to(ROOT)) for file in files])
