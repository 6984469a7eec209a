"""What a program uses of the official SDK's server module or of fastmcp, found in its syntax tree.

Nothing of the program is run. A name counts as a server where the file assigns `FastMCP(…)` or a proxy to it, and as a
context where a parameter is annotated `Context`.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from msgspec import Struct

from millstream.compat import types
from millstream.compat._porting.differences import CONTEXT, MEMBERS, MISSING, OPTIONS
from millstream.compat.fastmcp import _prompts as prompts
from millstream.compat.fastmcp._context import Context
from millstream.compat.fastmcp._functions import GUARDS, WITHOUT_EFFECT, OfFunction
from millstream.compat.fastmcp._missing import REFUSED
from millstream.compat.fastmcp._prompts import Prompt
from millstream.compat.fastmcp._server import StandaloneFastMCP
from millstream.compat.fastmcp._session import ServerSession
from millstream.compat.fastmcp._settings import Options
from millstream.compat.fastmcp._templates import ResourceTemplate
from millstream.compat.fastmcp._tools import Tool

_SERVERS = frozenset(("FastMCP", "MCPServer"))
_MAKERS = _SERVERS | {"FastMCPProxy", "create_proxy", "as_proxy", "from_client", "from_openapi", "from_fastapi"}
"""What gives a server."""
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
            _import(node, uses, changes)
    servers, modules = set(_servers(tree)), _modules(tree)
    own = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_set(node)}
    for node in ast.walk(tree):
        uses.extend(_in_call(node))
        uses.extend(use for use in _of_server(node, servers) if use.there or use.what not in own)
        uses.extend(_of_module(node, modules))
    for function in () if _has_other_context(tree) else ast.walk(tree):
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
        ours = "millstream.compat"
    elif module in ("mcp", "mcp.server") and _SERVERS & set(names):
        ours = _DOOR
    else:
        ours = target_of(module)
    if module.startswith(_CLIENTS):
        uses.append(Use(node.lineno, f"{module}: {', '.join(names)}", True, "a client; it stays what it is"))
        return
    if not ours:
        if module.split(".", maxsplit=1)[0] in ("mcp", "fastmcp"):
            uses.append(Use(node.lineno, f"{module}: {', '.join(names)}", False, "not of the server module"))
        return
    home = importlib.import_module(ours)
    found = [Use(node.lineno, f"{module}.{name}", *_imported(home, name)) for name in names]
    uses.extend(found)
    if all(use.there for use in found):
        changes.append(Change(node.lineno, node.col_offset, module, ours))


def _imported(home: ModuleType, name: str) -> tuple[bool, str]:
    if name in _CLIENT_NAMES:
        return False, "a client: use millstream.Client, and for a proxy ProxyClient"
    if name == "*" or hasattr(home, name) or (home.__name__ == "millstream.compat" and name == "types"):
        return True, ""
    return False, MISSING.get(name, "not here")


def _import(node: ast.Import, uses: list[Use], changes: list[Change]) -> None:
    for alias in node.names:
        if alias.name in _TYPES:
            uses.append(Use(node.lineno, f"import {alias.name}", bool(alias.asname), "" if alias.asname else _NAMELESS))
            if alias.asname:
                changes.append(Change(node.lineno, node.col_offset, alias.name, _TARGETS[alias.name]))
        elif alias.name.split(".")[0] in ("mcp", "fastmcp"):
            uses.append(Use(node.lineno, f"import {alias.name}", False, "import names: from … import FastMCP"))


_TYPES = ("mcp.types", "mcp_types")
_NAMELESS = "give it a name: import … as types"


def _modules(tree: ast.Module) -> dict[str, Any]:
    """Names that hold one of their modules -> ours."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: types for alias in node.names if alias.asname and alias.name in _TYPES}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                home = _MODULES.get((str(node.module).rpartition(".")[2], alias.name))
                if home is not None and str(node.module).split(".")[0] in ("mcp", "fastmcp"):
                    found[alias.asname or alias.name] = home
    return found


_MODULES: dict[tuple[str, str], Any] = {("mcp", "types"): types, ("prompts", "base"): prompts}
"""(The end of a module's name, a module in it) -> ours."""


def _of_module(node: ast.AST, modules: dict[str, Any]) -> Iterator[Use]:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
        there = hasattr(modules[node.value.id], node.attr)
        yield Use(node.lineno, f"{node.value.id}.{node.attr}", there, "" if there else "not here")


# Servers


def _servers(tree: ast.Module) -> Iterator[str]:
    """Names that hold a server, those of attributes (``self.mcp``) and parameters included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None and _is(node.annotation, _SERVERS):
            yield node.arg
        elif (
            isinstance(node, ast.Assign | ast.AnnAssign)
            and isinstance(node.value, ast.Call)
            and _called(node.value) in _MAKERS
        ):
            yield from map(_dotted, node.targets if isinstance(node, ast.Assign) else [node.target])


def _is_set(node: ast.Attribute) -> bool:
    """Whether the program gives this attribute a value: then it's the program's own, if nobody else has it."""
    return isinstance(node.ctx, ast.Store)


def _dotted(node: ast.expr) -> str:
    """``mcp`` or ``self.mcp``; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    simple = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    return ast.unparse(node) if simple else ""


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
            differs = OPTIONS.get(keyword.arg, "") if there else REFUSED.get(keyword.arg, "no such option")
            differs = MEMBERS["lifespan"] if keyword.arg == "lifespan" else differs
            yield Use(keyword.value.lineno, f"{_called(node)}({keyword.arg}=…)", there, differs)


def _of_server(node: ast.AST, servers: set[str]) -> Iterator[Use]:
    name = _dotted(node.value) if isinstance(node, ast.Attribute) else ""
    if isinstance(node, ast.Attribute) and name and (name in servers or name in _SERVERS):
        yield _member(node, f"{name}.{node.attr}", StandaloneFastMCP, MEMBERS, _SET_IN_INIT)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _dotted(node.func.value) in servers:
        yield from _in_decorator(node, node.func.attr)


def _in_decorator(node: ast.Call, method: str) -> Iterator[Use]:
    """The options of ``@mcp.tool(…)`` that aren't here, or change nothing."""
    if method not in _ITEMS:
        return
    known = {"uri", "name", "title", "description", *_ITEMS[method].options()}
    for keyword in node.keywords:
        if keyword.arg in GUARDS:
            if not (isinstance(keyword.value, ast.Constant) and not keyword.value.value):
                yield Use(keyword.value.lineno, f"{method}({keyword.arg}=…)", False, f"refused: {GUARDS[keyword.arg]}")
        elif keyword.arg in WITHOUT_EFFECT:
            yield Use(keyword.value.lineno, f"{method}({keyword.arg}=…)", True, "taken, and changes nothing")
        elif keyword.arg is not None and keyword.arg not in known:
            yield Use(keyword.value.lineno, f"{method}({keyword.arg}=…)", False, "no such option")


_ITEMS: dict[str, type[OfFunction]] = {"tool": Tool, "resource": ResourceTemplate, "prompt": Prompt}
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


def _has_other_context(tree: ast.Module) -> bool:
    """Whether `Context` is another library's here, or Millstream's own: the program is at home already."""
    return any(
        isinstance(node, ast.ImportFrom)
        and not node.level
        and str(node.module).split(".")[0] not in _THEIRS
        and not str(node.module).startswith("millstream.compat")
        and any((alias.asname or alias.name) == "Context" for alias in node.names)
        for node in ast.walk(tree)
    )


def _is_context(annotation: ast.expr) -> bool:
    return _is(annotation, frozenset(("Context",)))


def _is(annotation: ast.expr, names: frozenset[str]) -> bool:
    """Whether one of these names is in an annotation; as a name of another library (`click.Context`) it isn't."""
    for part in ast.walk(annotation):
        if isinstance(part, ast.Attribute):
            found = part.attr in names and _dotted(part.value).split(".")[0] in _THEIRS
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            found = not set(re.split(r"[^\w.]+", part.value)).isdisjoint(names)
        else:
            found = isinstance(part, ast.Name) and part.id in names
        if found:
            return True
    return False


_THEIRS = ("mcp", "fastmcp")


def _is_session(node: ast.expr, contexts: set[str]) -> bool:
    if not isinstance(node, ast.Attribute) or node.attr != "session":
        return False
    inner = node.value
    if isinstance(inner, ast.Attribute) and inner.attr == "request_context":
        inner = inner.value
    return isinstance(inner, ast.Name) and inner.id in contexts
