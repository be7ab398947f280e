import ast
from pathlib import Path

import keras

from tests.docs.base import ExamplesTestCase
from tests.docs.examples import blocks, run_block

README = Path(__file__).parents[2] / "README.md"


class Smaller(ast.NodeTransformer):
    """The same code with all sizes of 256 and more divided by 64."""

    def visit_Constant(self, node):
        is_size = isinstance(node.value, int) and node.value >= 256
        return ast.copy_location(ast.Constant(node.value // 64), node) if is_size else node


class ReadmeTest(ExamplesTestCase):
    """The blocks of the README run, on data and models of the size of tests."""

    def test_blocks(self):
        first, *others = blocks(README.read_text(encoding="utf-8"))
        small_model = self.names["model"]
        run_block(Smaller().visit(ast.parse(first)), self.names, "README")
        self.assertTrue(Path("model.keras").exists())

        self.names["build_model"] = lambda: keras.models.clone_model(small_model)
        for block in others:
            if "SlurmClusterResolver" in block:  # for which Slurm would have to be here: see test_cluster.py
                compile(block, "README", "exec")
            else:
                run_block(block, self.names, "README")
        self.assertEqual(len(others), 3)
