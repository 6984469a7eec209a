"""The hot path of a request inlines two methods to save their calls. Each copy must equal its method."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from millstream._http.server.connection import ServerConnection, ServerExchange
from millstream._http.server.listener import HttpProtocol


def statements(function: Callable[..., Any]) -> list[str]:
    """Return every statement of a function, without comments and docstrings."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef)
    return [
        ast.unparse(each)
        for node in ast.walk(tree)
        for body in (getattr(node, name, []) for name in ("body", "orelse"))
        if isinstance(body, list)
        for each in body
        if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
    ]


def own_statements(function: Callable[..., Any], names: Mapping[str, str]) -> list[str]:
    """Return the outermost statements of a function, with the names that its copy uses."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    found = [ast.unparse(each) for each in tree.body[1:]]
    words = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))
    return [words.sub(lambda match: names[match[0]], each) for each in found]


def is_copied(own: list[str], copied: list[str]) -> bool:
    """Return whether statements follow each other in a list."""
    return any(copied[at : at + len(own)] == own for at in range(len(copied)))


def test_request_starts_in_the_same_way_on_the_fast_path() -> None:
    own = own_statements(HttpProtocol._begin, {"exchange": "event"})
    assert len(own) == 4
    assert is_copied(own, statements(HttpProtocol.data_received))


def test_replies_complete_in_the_same_way_on_the_hot_path() -> None:
    names = {"self._shared": "protocol.guard", "self": "connection", "exchange": "self"}
    own = own_statements(ServerConnection.complete, names)
    assert len(own) == 3
    assert is_copied(own, statements(ServerExchange.run))
