import ast
import re
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.check

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "millstream"
IRREGULAR = {
    "begun", "bound", "cut", "done", "found", "given", "gone", "got", "heard", "held", "kept", "known", "left", "lost",
    "made", "meant", "met", "owed", "paid", "put", "said", "seen", "sent", "shown", "spent", "taken", "told", "written",
}  # fmt: skip
"""Participles that don't end in -ed."""
NOUNS = {
    "Cancelled": "a public exception with the name of the answer in MCP",
    "Declined": "a public exception with the name of the answer in MCP",
    "Feed": "a noun that ends in -ed",
    "Greeting": "a noun: the first message on a connection",
    "Reading": "a noun: the value of a metric at one time",
    "client/_oauth/signing.py": "the practice of signing proofs",
    "testing.py": "the usual name of a module for tests",
}
"""Names that look like participles, and why they stay."""
FUNCTIONS = {
    "cut": "an infinitive, too",
    "feed": "an infinitive that ends in -ed",
    "missing": "`__missing__` of dict",
    "nothing": "a noun: the callback that does nothing",
    "proceed": "an infinitive that ends in -ed",
    "put": "an infinitive, too",
    "running": "the public context manager: `async with server.running():`",
    "string": "a noun: the reader of a JSON string",
    "succeed": "an infinitive that ends in -ed",
    "warning": "a public method with the name of the level, as in logging",
}
"""Functions whose names look like participles, and why they stay. A property may have any name."""


def is_participle(word: str) -> bool:
    return word in IRREGULAR or re.fullmatch(r"\w{2,}(?:ed|ing)", word) is not None


def is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("property" in ast.unparse(each) or ast.unparse(each).endswith(".setter") for each in node.decorator_list)


@cache
def classes() -> tuple[tuple[str, str], ...]:
    """Name and file of every class."""
    return tuple(
        (node.name, path.relative_to(PACKAGE).as_posix())
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    )


def test_no_class_name_is_a_bare_participle() -> None:
    names = {name for name, _ in classes() if re.fullmatch(r"_?[A-Z][a-z]+", name)}
    assert {name for name in names if is_participle(name.strip("_").lower())} - set(NOUNS) == set()


def test_no_module_name_is_a_bare_participle() -> None:
    folders = [path.parent for path in PACKAGE.rglob("__init__.py")]
    paths = [path for path in (*PACKAGE.rglob("*.py"), *folders) if is_participle(path.stem.strip("_"))]
    assert {path.relative_to(PACKAGE).as_posix() for path in paths} - set(NOUNS) == set()


def test_no_function_name_is_a_bare_participle() -> None:
    found = {
        f"{node.name} in {path.relative_to(PACKAGE).as_posix()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and is_participle(node.name.strip("_"))
        and "_" not in (name := node.name.strip("_"))
        and name not in FUNCTIONS
        and not is_property(node)
    }
    assert found == set()


def test_no_two_public_classes_share_a_name() -> None:
    files: dict[str, set[str]] = {}
    for name, path in classes():
        if not name.startswith("_") and not path.startswith("compat/"):
            files.setdefault(name, set()).add(path)
    shared = {name: sorted(paths) for name, paths in files.items() if len(paths) > 1}
    assert shared == {}
