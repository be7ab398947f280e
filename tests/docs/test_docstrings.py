from absl.testing import parameterized

import tf_moe
from tests.docs.base import ExamplesTestCase
from tests.docs.examples import run
from tests.docs.public import documentation, public_modules, public_names

PUBLIC = public_names()
MODULES = {module.__name__: module for module in public_modules() if module is not tf_moe}


class DocstringsTest(ExamplesTestCase):
    """Every public name has an example, and examples do what they say."""

    @parameterized.named_parameters((name.replace(".", "_"), name) for name in PUBLIC)
    def test_examples(self, name):
        docstrings = dict(documentation(name, PUBLIC[name]))
        counts = {title: run(text, self.names, title) for title, text in docstrings.items()}
        self.assertGreater(
            sum(counts.values()),
            0,
            f"{name} has no example. Put one into its docstring{'' if docstrings[name] else ', which it lacks too'}: "
            "lines with >>> and what they print, or a block fenced by ```python.",
        )

    @parameterized.named_parameters((name.replace(".", "_"), name) for name in MODULES)
    def test_modules(self, name):
        self.assertTrue(hasattr(MODULES[name], "__all__"), f"{name} has no __all__, which says what is public in it.")
        self.assertTrue(MODULES[name].__doc__, f"{name} has no docstring.")
        run(MODULES[name].__doc__, self.names, name)
