"""Tables of options in the reference: names, types, and defaults come from the code, and sentences from the page.

A table follows a line such as ``<!-- options: upstreams -->``. `scripts/docs.py` writes it.
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import FieldInfo, fields

from millstream import Client, Principal, Server, Settings, auth
from millstream._gateway.apis.items import register
from millstream._gateway.files.read import _Target, upstream_options
from millstream._gateway.files.values import GatewayConfig, options_of
from millstream._gateway.options.upstream import UpstreamConfig
from millstream._server.features.resources import PromptOptions, ResourceLabels, ResourceOptions
from millstream._server.features.tools import ToolOptions
from millstream._server.functions.description import Labels
from millstream.client import Options
from millstream.gateway import (
    ApprovalPolicy,
    GroupPolicy,
    OpenApi,
    PromptPolicy,
    ResourcePolicy,
    SetConfig,
    ToolPolicy,
    UpstreamPolicy,
)

TABLE = re.compile(r"^<!-- options: (?P<name>[\w-]+) -->\n\n(?P<body>(?:\|.*\n)*)", re.MULTILINE)
HEAD = "| option | type | default | meaning |\n|---|---|---|---|\n"
WORDS = {
    "Allow": "list of strings or table",
    "Approvers": "list of strings",
    "Any": "any value",
    "AnyAuthMethod": "method of `millstream.auth`",
    "Authorize": "function",
    "Automatic": "text",
    "Cap": "integer",
    "ClientExtension": "extension",
    "Elicit": "function",
    "Extension": "extension",
    "Lifespan": "async context manager",
    "LogFormat": "text",
    "LogLevel": "text",
    "Names": "list of strings",
    "OnChange": "function",
    "OnLog": "function",
    "PeerText": "text",
    "QuotaText": "text",
    "DurationText": "text",
    "RateText": "text",
    "Redaction": "table",
    "RequiredRateText": "text",
    "RootPath": "text",
    "Roots": "list of paths",
    "Sample": "function",
    "Seconds": "number",
    "Size": "integer",
    "Switch": "boolean",
    "Target": "URL, command, or object",
    "Texts": "list of strings",
    "Timeout": "number",
    "UrlPath": "text",
    "Weight": "number",
    "bool": "boolean",
    "bytes": "bytes",
    "dict": "table",
    "float": "number",
    "int": "integer",
    "object": "object",
    "str": "text",
}
"""Types of the code -> what a page calls them. Other types have their own names."""
UPSTREAM_ORDER = (
    *("url", "command", "args", "openapi", "env", "cwd", "disabled", "prefix", "revision"),
    *("auth", "headers", "forward_headers", "forward_client", "policy", "trust"),
    *("isolation", "keeps_state", "max_processes", "spare_processes", "idle_seconds", "memory_limit"),
    *("timeout", "connect_timeout", "start_timeout", "refresh_seconds"),
    *("max_connections", "max_bytes", "max_catalog_bytes"),
)
"""Options of an upstream by subject: where it is, what is sent to it and trusted, processes, times, and sizes."""
AUTH_FUNCTIONS = [name for name in auth.__all__ if inspect.isfunction(getattr(auth, name)) and name != "provider_token"]
"""Functions of `millstream.auth` that have options."""


class Option(NamedTuple):
    """A row of a table, without its sentence."""

    name: str
    kind: str
    default: str


def _parsed(value: Any) -> list[ast.stmt]:
    return ast.parse(textwrap.dedent(inspect.getsource(value))).body


def of_function(function: Callable[..., Any]) -> Iterator[Option]:
    """Return the parameters of a function, without ``self`` and ``**more``."""
    (tree,) = (each for each in _parsed(function) if isinstance(each, ast.FunctionDef))
    kinds = {each.arg: kind_text(each.annotation) for each in (*tree.args.args, *tree.args.kwonlyargs)}
    if repeated := tree.args.vararg:
        kinds[repeated.arg] = many(kind_text(repeated.annotation))
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            yield Option(name, kinds[name], "empty")
        elif name != "self" and parameter.kind is not parameter.VAR_KEYWORD:
            default = "required" if parameter.default is parameter.empty else written(parameter.default)
            yield Option(name, kinds[name], default)


def annotations(*classes: type) -> dict[str, ast.expr]:
    """Return the annotations in the source of classes and their bases."""
    found: dict[str, ast.expr] = {}
    for each in (base for kind in classes for base in kind.__mro__ if base.__module__.startswith("millstream")):
        (tree,) = (node for node in _parsed(each) if isinstance(node, ast.ClassDef))
        found |= {
            line.target.id: line.annotation
            for line in tree.body
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        }
    return found


def of_settings() -> Iterator[Option]:
    """Return the settings, with their defaults as variables have them."""
    kinds = annotations(Settings)
    for each in fields(Settings):
        yield Option(each.name, kind_text(kinds[each.name]), size(each.default) or written(each.default))


def size(value: Any) -> str:
    """Return a number of bytes in the form of the pages, if it is one: ``4 MiB (`4194304`)``."""
    return f"{value >> 20} MiB (`{value}`)" if type(value) is int and value and value % 2**20 == 0 else ""


def of_decorator(*classes: type, **other_defaults: str) -> Iterator[Option]:
    """Return the options of a decorator, which have no values in the code."""
    defaults = {"description": "the docstring", "name": "the function's name", "enabled": "`true`", "thread": "`true`"}
    defaults |= other_defaults
    for name, kind in sorted(annotations(*classes).items()):
        yield Option(name, kind_text(kind), defaults.get(name, "none"))


def of_tool() -> Iterator[Option]:
    """Return the options of `@mcp.tool`."""
    defaults = {"output_schema": "from the annotation", "input_schema": "from the signature", "title": "the name"}
    defaults |= {"cost": "`1`", "coerce": "`false`", "task_retry": "`false`", "defer_task": "`false`"}
    return of_decorator(ToolOptions, Labels, **defaults)


def of_openapi() -> Iterator[Option]:
    """Return the options of `Server.from_openapi`, which passes most of them on."""
    own = {each.name: each for each in of_function(Server.from_openapi.__func__)}  # type: ignore[attr-defined] # a class method
    passed_on = {each.name: each for each in of_function(register)}
    yield from (each for name, each in {**own, **passed_on}.items() if name not in ("add", "cls"))


def of_fields(options: Iterator[FieldInfo] | list[FieldInfo], *classes: type) -> Iterator[Option]:
    """Return the fields of Structs."""
    kinds = annotations(*classes)
    for each in options:
        kind = kind_text(kinds[each.name]) if each.name in kinds else "text"
        yield Option(each.name, kind, shown_default(each))


def of_client_options() -> Iterator[Option]:
    """Return the options of a client, which has no file."""
    for each in of_fields(list(fields(Options)), Options):
        yield each._replace(default="the current folder") if each.name == "cwd" else each


def kind_text(node: ast.expr | None) -> str:  # noqa: C901, PLR0911  one for each form
    """Return a type as words: ``text``, ``list of strings``, ``function``."""
    match node:
        case ast.Constant(value=str(text)):
            return kind_text(ast.parse(text, mode="eval").body)
        case ast.BinOp(left=left, right=ast.Constant(value=None)):
            return kind_text(left)
        case ast.BinOp(left=left, right=right):
            one, other = kind_text(left), kind_text(right)
            return f"{one}, or a list" if other == many(one) else f"{one} or {other}"
        case ast.Subscript(value=ast.Name(id="tuple" | "list" | "Sequence" | "Collection"), slice=inner):
            item = inner.elts[0] if isinstance(inner, ast.Tuple) else inner
            return many(kind_text(item))
        case ast.Subscript(value=ast.Name(id="frozenset"), slice=inner):
            return many(kind_text(inner)).replace("list", "set", 1)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            values = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return " or ".join(f'`"{each.value}"`' for each in values if isinstance(each, ast.Constant) and each.value)
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, *_])):
            return kind_text(inner)
        case ast.Subscript(value=ast.Name(id="Callable")):
            return "function"
        case ast.Subscript(value=ast.Name(id="dict" | "Mapping")):
            return "table"
        case ast.Subscript(value=value):
            return kind_text(value)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return WORDS.get(name, "table" if name.endswith(("Policy", "Config")) else f"`{name}`")
        case _:
            return "text"


def many(kind: str) -> str:
    """Return the name of a list: ``list of strings``. Tables in a list have names: ``[upstreams.NAME]``."""
    if kind in ("table", "any value"):
        return "tables"
    return f"list of {'strings' if kind == 'text' else f'{kind}s' if kind.isalpha() else kind}"


def written(value: Any) -> str:
    """Return a default in the form of the pages."""
    if value is None:
        return "none"
    if value in ((), "", b"", frozenset()):
        return "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{','.join(value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def shown_default(option: FieldInfo) -> str:
    """Return the default of a Struct's field in the form of the pages."""
    if option.required:
        return "required"
    if option.name == "prefix":  # None
        return "the name"
    if option.name == "cwd":  # None
        return "the folder of the file"
    default = option.default_factory() if option.default is msgspec.NODEFAULT else option.default
    if default and isinstance(default, tuple):
        return f"`{json.dumps(default)}`"
    return "empty" if default in (None, {}) else written(default)


def of_upstreams() -> Iterator[Option]:
    """Return the options of an upstream in the order of the page, and new ones at the end."""
    found = {each.name: each for each in of_fields(list(upstream_options().values()), UpstreamConfig, _Target)}
    yield from (found[name] for name in dict.fromkeys((*UPSTREAM_ORDER, *found)))


def own(kind: type[msgspec.Struct]) -> list[FieldInfo]:
    """Return the options that the policy of an upstream doesn't have."""
    return [each for each in fields(kind) if each.name not in UpstreamPolicy.__struct_fields__]


TABLES: Mapping[str, Callable[[], Iterator[Option]]] = {
    "server": lambda: of_function(Server.__init__),
    "settings": of_settings,
    "tool": of_tool,
    "resource": partial(of_decorator, ResourceOptions, ResourceLabels, Labels),
    "prompt": partial(of_decorator, PromptOptions, Labels),
    "openapi": of_openapi,
    "principal": lambda: of_fields(list(fields(Principal)), Principal),
    "client": lambda: of_function(Client.__init__),
    "client-options": of_client_options,
    **{f"auth-{name}": partial(of_function, getattr(auth, name)) for name in AUTH_FUNCTIONS},
    "gateway": lambda: of_fields(list(options_of(GatewayConfig).values()), GatewayConfig),
    "upstreams": of_upstreams,
    "apis": lambda: of_fields(list(fields(OpenApi)), OpenApi),
    "policies": lambda: of_fields([each for each in fields(UpstreamPolicy) if each.name != "shared"], UpstreamPolicy),
    "groups": lambda: of_fields(list(fields(GroupPolicy)), GroupPolicy),
    "approvals": lambda: of_fields(list(fields(ApprovalPolicy)), ApprovalPolicy),
    "tools": lambda: of_fields(own(ToolPolicy), ToolPolicy),
    "prompts": lambda: of_fields(own(PromptPolicy), PromptPolicy),
    "resources": lambda: of_fields(own(ResourcePolicy), ResourcePolicy),
    "sets": lambda: of_fields([each for each in fields(SetConfig) if each.name != "name"], SetConfig),
}


def with_options(text: str) -> str:
    """Return a page with its tables of options. A sentence stays at its option, and a setting in its table."""

    def fill(match: re.Match[str]) -> str:
        rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", match["body"], re.MULTILINE)
        sentences = dict(rows)
        options = {each.name: each for each in TABLES[match["name"]]()}
        if match["name"] == "settings":  # the page has several tables
            options = {name: options[name] for name in sentences if name in options}
        lines = [
            f"| `{name}` | {kind} | {default} | {sentences.get(name, '')} |\n"
            for name, kind, default in options.values()
        ]
        head = HEAD.replace("option", "field", 1) if match["name"] == "principal" else HEAD
        return f"<!-- options: {match['name']} -->\n\n{head}{''.join(lines)}"

    return TABLE.sub(fill, text)
