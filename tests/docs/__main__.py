"""Builds the pages of the documentation: `python -m tests.docs [directory]`, by default `runs/docs`."""

import sys
import types
import warnings
from pathlib import Path

import keras
import pdoc.doc
import pdoc.docstrings
import pdoc.render
import tensorflow as tf

import tf_moe
from tests.docs.guides import GUIDES, guide_page
from tests.docs.public import public_modules, value_docstring

HERE = Path(__file__).parent

# Where users import from what signatures name, the most particular place last.
PLACES = {
    "tf": tf,
    "tf.data": tf.data,
    "tf.distribute": tf.distribute,
    "tf.distribute.cluster_resolver": tf.distribute.cluster_resolver,
    "keras": keras,
    "keras.callbacks": keras.callbacks,
    "keras.initializers": keras.initializers,
    "keras.layers": keras.layers,
    "keras.losses": keras.losses,
    "keras.metrics": keras.metrics,
    "keras.optimizers": keras.optimizers,
    "keras.optimizers.schedules": keras.optimizers.schedules,
}


def main(directory: Path) -> None:
    """Writes a page for each public module and each of the guides, and `index.html`, which leads to `tf_moe`."""
    warnings.simplefilter("error")  # which is how pdoc tells of what it cannot show
    name_as_imported()
    pdoc.docstrings.GOOGLE_LIST_SECTIONS.append("Call arguments")
    footer = f"tf_moe {tf_moe.__version__}"
    pdoc.render.configure(docformat="google", footer_text=footer, template_directory=HERE)  # where custom.css is

    pages = {module.__name__: page_of(module) for module in public_modules()}
    pages |= {f"{tf_moe.__name__}.{name}": guide_page(name, tf_moe.__name__) for name in GUIDES}
    for name, page in pages.items():
        page.submodules = [pages[other] for other in pages if other.rpartition(".")[0] == name]

    files = {f"{name.replace('.', '/')}.html": pdoc.render.html_module(page, pages) for name, page in pages.items()}
    files |= {"index.html": pdoc.render.html_index(pages), "search.js": pdoc.render.search_index(pages)}
    for name, content in files.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")


def name_as_imported() -> None:
    """Makes classes of TensorFlow and Keras say where they are public: tf.Tensor, not tensorflow.python.framework..."""
    for place, module in PLACES.items():
        for name, value in vars(module).items():
            if isinstance(value, type) and value.__module__.startswith(("tensorflow", "keras")):
                value.__module__, value.__qualname__ = place, name


def page_of(module: types.ModuleType) -> pdoc.doc.Module:
    """What pdoc finds in a module, with descriptions of its tables, and without methods that only Keras describes."""
    page = pdoc.doc.Module(module)
    for name, member in page.members.items():
        if isinstance(member, pdoc.doc.Variable):
            member.docstring = value_docstring(name, module)
            if isinstance(member.default_value, dict):  # whose contents would fill the page of a search
                member.default_value = pdoc.doc.empty
        elif isinstance(member, pdoc.doc.Class):
            members = member.members.items()
            member.members = {n: one for n, one in members if n == "__init__" or describes(member.obj, one)}
    return page


def describes(cls: type, member: pdoc.doc.Doc) -> bool:
    """Whether a class itself, and no class of Keras, says what a member is. Fields of a NamedTuple it has described."""
    own = vars(cls).get(member.name)
    return bool(own and own.__doc__ and member.docstring and not own.__doc__.startswith("Alias for field number"))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/docs"))
