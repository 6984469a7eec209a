"""Types in the annotations of public classes and functions can be imported."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import millstream

pytestmark = pytest.mark.check

PACKAGE = Path(millstream.__file__).parent
COMPLETE = ("millstream.client.", "millstream.extensions.", "millstream.hub.", "millstream.agent.")
"""Packages whose public annotations name only public classes, in their submodules too."""
MAX_HIDDEN_TYPES = 46
"""Maximum number of classes that public annotations name and no public module exports. It may only fall."""
Place = tuple[str, str]
"""A module and a name in it."""


@cache
def module_trees() -> dict[str, ast.Module]:
    """Return each module of the package by its dotted name."""
    return {
        ".".join(("millstream", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): ast.parse(
            path.read_text("utf-8")
        )
        for path in PACKAGE.rglob("*.py")
    }


@cache
def source_lines(module: str) -> list[str]:
    """Return the lines of a module."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8").splitlines()


@cache
def names_in(module: str) -> dict[str, Place]:
    """Return the names that a module imports from the package, and its classes, with the place of each."""
    tree, names = module_trees()[module], dict[str, Place]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("millstream"):
            names |= {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}
    return names | {node.name: (module, node.name) for node in tree.body if isinstance(node, ast.ClassDef)}


@cache
def find_definition(module: str, name: str) -> Place | None:
    """Return where a name is defined, through the modules that only pass it on."""
    place = names_in(module).get(name) if module in module_trees() else None
    if place is None or place == (module, name):
        return place
    return find_definition(*place) or (place if place[0] in module_trees() else None)


@cache
def exported_places() -> dict[Place, set[str]]:
    """Return the place of each public name, with the public modules that export it."""
    places: dict[Place, set[str]] = {}
    for module, tree in module_trees().items():
        if any(part.startswith("_") for part in module.split(".")):
            continue
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                for name in ast.literal_eval(node.value):
                    if place := find_definition(module, name):
                        places.setdefault(place, set()).add(module)
    return places


def annotations_of(definition: ast.stmt) -> Iterator[ast.expr]:
    """Yield the annotations of a function, or of a class's public members and constructor."""
    members = definition.body if isinstance(definition, ast.ClassDef) else [definition]
    for member in members:
        if isinstance(member, ast.AnnAssign) and not ast.unparse(member.target).startswith("_"):
            yield member.annotation
        elif isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
            if member.name.startswith("_") and member.name != "__init__":
                continue
            arguments = member.args
            for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                if argument.annotation is not None:
                    yield argument.annotation
            if member.returns is not None:
                yield member.returns
            for node in ast.walk(member):
                if isinstance(node, ast.AnnAssign) and ast.unparse(node.target).startswith("self.") and (
                    not ast.unparse(node.target).startswith("self._")
                ):  # fmt: skip
                    yield node.annotation


def classes_in(module: str, annotation: ast.expr) -> Iterator[Place]:
    """Yield the package's classes that an annotation names, also in strings."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                yield from classes_in(module, ast.parse(node.value, mode="eval").body)
            except SyntaxError:
                continue
        elif isinstance(node, ast.Name) and (place := find_definition(module, node.id)):
            tree = module_trees()[place[0]]
            if any(isinstance(each, ast.ClassDef) and each.name == place[1] for each in tree.body):
                yield place


@cache
def hidden_types() -> dict[str, set[str]]:
    """Return the classes that public annotations name and no public module exports, by the module that names them."""
    hidden: dict[str, set[str]] = {}
    for (module, name), exporters in exported_places().items():
        for definition in module_trees()[module].body:
            if getattr(definition, "name", "") != name:
                continue
            for annotation in annotations_of(definition):
                for place in set(classes_in(module, annotation)) - exported_places().keys():
                    for exporter in exporters:
                        hidden.setdefault(exporter, set()).add(".".join(place))
    return hidden


def test_types_that_users_hold_can_be_imported() -> None:
    hidden = {module: types for module, types in hidden_types().items() if f"{module}.".startswith(COMPLETE)}
    assert hidden == {}


def test_few_public_annotations_name_private_classes() -> None:
    hidden = set[str]().union(*hidden_types().values())
    assert len(hidden) <= MAX_HIDDEN_TYPES, f"{len(hidden)} classes:\n" + "\n".join(sorted(hidden))


def definitions_at(place: Place) -> list[ast.stmt]:
    """Return the classes and functions with a name in a module, overloads included."""
    module, name = place
    return [each for each in module_trees()[module].body if getattr(each, "name", "") == name]


@cache
def reachable_places() -> frozenset[Place]:
    """Return the public classes and functions, and the private classes that they inherit from or return."""
    found, waiting = set[Place](), set(exported_places())
    for module, tree in module_trees().items():
        if not any(part.startswith("_") for part in module.split(".")):
            functions = [each for each in tree.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            waiting |= {(module, each.name) for each in functions if each.name[0] != "_"}
    while waiting:
        place = waiting.pop()
        found.add(place)
        for definition in definitions_at(place):
            inherited = definition.bases if isinstance(definition, ast.ClassDef) else []
            returned = [each.returns for each in functions_for_checkers(definition) if each.returns]
            for expression in (*inherited, *returned):
                waiting |= {each for each in classes_in(place[0], expression) if each not in found}
    return frozenset(found)


def functions_for_checkers(definition: ast.stmt) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield a function, or a class's public methods, without what checkers don't see: bodies of overloads, and members
    below ``if not TYPE_CHECKING``.
    """
    overloaded = set[str]()
    for member in definition.body if isinstance(definition, ast.ClassDef) else [definition]:
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not re.match("_(?!_)", member.name):
            if "overload" in [ast.unparse(each) for each in member.decorator_list]:
                overloaded.add(member.name)
                yield member
            elif member.name not in overloaded:
                yield member


def test_public_functions_that_return_any_say_why_on_the_line() -> None:
    unexplained = set[str]()
    for module, name in reachable_places():
        lines = source_lines(module)
        definitions = definitions_at((module, name))
        overloaded = len(definitions) > 1
        for definition in definitions[:-1] if overloaded else definitions:
            for function in functions_for_checkers(definition):
                returned = ast.unparse(function.returns).strip("'") if function.returns else ""
                line = lines[function.returns.lineno - 1] if function.returns else ""
                if "Any" in returned.split(" | ") and not re.search(r"#(?! (?:noqa|pyright|type:)) \w", line):
                    unexplained.add(f"{module}: {line.strip()}")
    assert unexplained == set()
