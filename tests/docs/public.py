"""The public names, found by themselves, and what is written about each."""

import ast
import importlib
import inspect
import pkgutil
import types
from collections.abc import Iterator

import tf_moe


def public_modules() -> list[types.ModuleType]:
    """What `tf_moe.__all__` holds; and of the modules inside, those with an `__all__` of their own, imported apart."""
    modules = [tf_moe]
    for package in (getattr(tf_moe, name) for name in tf_moe.__all__):
        if isinstance(package, types.ModuleType):
            found = pkgutil.walk_packages(getattr(package, "__path__", []), f"{package.__name__}.")
            inside = [importlib.import_module(module.name) for module in found]
            modules += [package, *(module for module in inside if hasattr(module, "__all__"))]
    return modules


def public_names() -> dict[str, types.ModuleType]:
    """Dotted names of all that is no module, such as "tf_moe.layers.SparseMoE", and the modules they are of."""
    return {
        f"{module.__name__}.{name}": module
        for module in public_modules()
        for name in getattr(module, "__all__", ())
        if not isinstance(getattr(module, name), types.ModuleType) and not name.startswith("__")
    }


def documentation(name: str, module: types.ModuleType) -> Iterator[tuple[str, str]]:
    """Docstrings of a public name and of its methods and properties, each with its dotted name."""
    short = name.rpartition(".")[2]
    value = getattr(module, short)
    if not isinstance(value, (type, types.FunctionType)):
        yield name, value_docstring(short, module)
        return
    yield name, inspect.cleandoc(value.__doc__ or "")  # inspect.getdoc would look at base classes too, Keras's
    for attribute, member in vars(value).items() if isinstance(value, type) else ():
        member = getattr(member, "__func__", member)  # of a class method
        if not attribute.startswith("_") and isinstance(member, (types.FunctionType, property)):
            yield f"{name}.{attribute}", inspect.cleandoc(member.__doc__ or "")


def value_docstring(name: str, module: types.ModuleType) -> str:
    """The string under the assignment of a constant or a table, which Python itself does not keep."""
    statements = ast.parse(inspect.getsource(module)).body
    for statement, following in zip(statements, [*statements[1:], None], strict=True):
        match statement, following:
            case ast.ImportFrom(module=origin, names=names), _ if name in {alias.name for alias in names}:
                return value_docstring(name, importlib.import_module(origin))
            case (
                (ast.Assign(targets=[ast.Name(id=target)]) | ast.AnnAssign(target=ast.Name(id=target))),
                ast.Expr(ast.Constant(str(text))),
            ) if target == name:
                return inspect.cleandoc(text)
    return ""
