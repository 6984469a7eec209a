"""What a program uses of the official SDK's server module or of fastmcp, found in its syntax tree.

Nothing of the program is run. A name counts as a server where the file assigns `FastMCP(…)` to it, and as a context
where a parameter is annotated `Context`.
"""

import ast
import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from msgspec import Struct

from millstream.compat._porting.differences import CONTEXT, MEMBERS, MISSING, OPTIONS
from millstream.compat.fastmcp._context import Context
from millstream.compat.fastmcp._server import FastMCP
from millstream.compat.fastmcp._session import ServerSession
from millstream.compat.fastmcp._settings import Options

_SERVERS = frozenset(("FastMCP", "MCPServer"))
_DOOR = "millstream.compat.fastmcp"
_TARGETS: dict[str, str] = {
    "mcp.server.fastmcp": _DOOR,
    "mcp.server.mcpserver": _DOOR,
    "mcp.server.elicitation": _DOOR,
    "mcp.server.session": _DOOR,
    "mcp.server.auth": _DOOR,
    "mcp.server.transport_security": _DOOR,
    "mcp.shared.auth": _DOOR,
    "mcp.shared.exceptions": _DOOR,
    "mcp.types": "millstream.compat.types",
    "mcp_types": "millstream.compat.types",
    "fastmcp": "millstream.compat.fastmcp.standalone",
}
"""Module of theirs -> module of ours; the longest that fits."""
_CLIENTS = ("mcp.client", "fastmcp.client", "mcp.shared.memory")
_CLIENT_NAMES = frozenset(("Client", "ClientSession", "StdioServerParameters", "stdio_client"))


class Use(Struct, frozen=True):
    """One thing that a program uses."""

    line: int
    what: str
    there: bool
    differs: str = ""
    """What is different about it, or why it is not there."""


class Change(Struct, frozen=True):
    """A module name in an import that can be replaced."""

    line: int
    column: int
    theirs: str
    ours: str


class Survey(Struct, frozen=True):
    """All that was found."""

    uses: tuple[Use, ...]
    changes: tuple[Change, ...]

    @property
    def missing(self) -> tuple[Use, ...]:
        """What is not there."""
        return tuple(use for use in self.uses if not use.there)


def survey(source: str, filename: str = "<program>") -> Survey:
    """Look through a program.

    Raises:
        SyntaxError: it is not Python.
    """
    tree = ast.parse(source, filename)
    uses: list[Use] = []
    changes: list[Change] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            _import_from(node, node.module, uses, changes)
        elif isinstance(node, ast.Import):
            _import(node, uses)
    servers = set(_servers(tree))
    for node in ast.walk(tree):
        uses.extend(_in_call(node))
        uses.extend(_of_server(node, servers))
    for function in () if _has_our_context(tree) else ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            uses.extend(_of_contexts(function))
    return Survey(tuple(sorted(set(uses), key=lambda use: (use.line, use.what))), tuple(changes))


# Imports


def target_of(module: str) -> str:
    """Our module for one of theirs; empty for none."""
    found = [theirs for theirs in _TARGETS if module == theirs or module.startswith(f"{theirs}.")]
    return _TARGETS[max(found, key=len)] if found else ""


def _import_from(node: ast.ImportFrom, module: str, uses: list[Use], changes: list[Change]) -> None:
    names = [alias.name for alias in node.names]
    if module == "mcp" and set(names) <= {"types"}:
        module, ours = "mcp", "millstream.compat"
    elif module == "mcp" and _SERVERS & set(names):
        ours = _DOOR
    else:
        ours = target_of(module)
    if module.startswith(_CLIENTS):
        uses.append(Use(node.lineno, f"{module}: {', '.join(names)}", True, "a client; it stays what it is"))
        return
    if not ours:
        if module.split(".")[0] in ("mcp", "fastmcp"):
            uses.append(Use(node.lineno, f"{module}: {', '.join(names)}", False, "not of the server module"))
        return
    home = importlib.import_module(ours)
    found = [Use(node.lineno, f"{module}.{name}", *_imported(home, name)) for name in names]
    uses.extend(found)
    if all(use.there for use in found):
        changes.append(Change(node.lineno, node.col_offset, module, ours))


def _imported(home: ModuleType, name: str) -> tuple[bool, str]:
    if name in _CLIENT_NAMES:
        return False, "a client: use millstream.Client"
    if name == "*" or hasattr(home, name) or (home.__name__ == "millstream.compat" and name == "types"):
        return True, ""
    return False, MISSING.get(name, "not here")


def _import(node: ast.Import, uses: list[Use]) -> None:
    uses.extend(
        Use(node.lineno, f"import {alias.name}", False, "import names: from … import FastMCP")
        for alias in node.names
        if alias.name.split(".")[0] in ("mcp", "fastmcp")
    )


# Servers


def _servers(tree: ast.Module) -> Iterator[str]:
    """Names that hold a server."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        if isinstance(node.value, ast.Call) and _called(node.value) in _SERVERS:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def _called(call: ast.Call) -> str:
    function: Any = call.func
    if isinstance(function, ast.Subscript):
        function = function.value
    return str(getattr(function, "id", getattr(function, "attr", "")))


_POSITIONAL = frozenset(
    ("name", "instructions", "website_url", "icons", "auth_server_provider", "token_verifier", "event_store",
     "retry_interval")
)  # fmt: skip


def _in_call(node: ast.AST) -> Iterator[Use]:
    if not isinstance(node, ast.Call) or _called(node) not in _SERVERS:
        return
    known = _POSITIONAL | Options.__optional_keys__
    for keyword in node.keywords:
        if keyword.arg is not None:
            there = keyword.arg in known
            differs = OPTIONS.get(keyword.arg, "") if there else "no such option"
            differs = MEMBERS["lifespan"] if keyword.arg == "lifespan" else differs
            yield Use(keyword.value.lineno, f"{_called(node)}({keyword.arg}=…)", there, differs)


def _of_server(node: ast.AST, servers: set[str]) -> Iterator[Use]:
    if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
        return
    if node.value.id in servers or node.value.id in _SERVERS:
        yield _member(node, f"{node.value.id}.{node.attr}", FastMCP, MEMBERS, _SET_IN_INIT)


_SET_IN_INIT = frozenset(("settings", "icons", "website_url", "engine", "offered", "mask_error_details"))
"""Attributes of a server that no class has."""


def _member(node: ast.Attribute, what: str, home: type, differ: Any, more: frozenset[str] = frozenset()) -> Use:
    if hasattr(home, node.attr) or node.attr in more:
        return Use(node.lineno, what, True, differ.get(node.attr, ""))
    why = "private there, and not here" if node.attr.startswith("_") else "not here"
    return Use(node.lineno, what, False, MISSING.get(node.attr, why))


# Contexts


def _of_contexts(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Use]:
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    contexts = {each.arg for each in given if each.annotation is not None and _is_context(each.annotation)}
    for node in ast.walk(function):
        if not isinstance(node, ast.Attribute):
            continue
        if isinstance(node.value, ast.Name) and node.value.id in contexts:
            yield _member(node, f"{node.value.id}.{node.attr}", Context, CONTEXT)
        elif _is_session(node.value, contexts):
            yield _member(node, f"session.{node.attr}", ServerSession, {})


def _has_our_context(tree: ast.Module) -> bool:
    """Whether `Context` is Millstream's own here: the program is at home already."""
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == "millstream"
        and any(a.name == "Context" for a in node.names)
        for node in ast.walk(tree)
    )


def _is_context(annotation: ast.expr) -> bool:
    return any(
        getattr(part, "id", getattr(part, "attr", getattr(part, "value", None))) == "Context"
        for part in ast.walk(annotation)
    )


def _is_session(node: ast.expr, contexts: set[str]) -> bool:
    if not isinstance(node, ast.Attribute) or node.attr != "session":
        return False
    inner = node.value
    if isinstance(inner, ast.Attribute) and inner.attr == "request_context":
        inner = inner.value
    return isinstance(inner, ast.Name) and inner.id in contexts
