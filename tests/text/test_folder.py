from pathlib import Path

from tests.base import TestCase
from tf_moe.text.folder import visible_files


class VisibleFilesTest(TestCase):
    def test_files(self):
        root = Path(self.get_temp_dir(), ".hidden", "root")  # what is above does not count
        for name in ("b/c.txt", "a.txt", ".git/config", "b/.cache", "b/.d/e.txt"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        self.assertEqual(visible_files(root), [Path("a.txt"), Path("b/c.txt")])
