"""Operations of an OpenAPI document as items of a server, and the options of documents."""

import logging
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from copy import deepcopy
from enum import Enum
from functools import partial, reduce
from importlib import import_module
from operator import getitem
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from millstream import EmbeddedResource, ProtocolError, ToolError, ToolResult
from millstream._gateway.apis.document import ANY_SCALAR, Document, Operation, origin_of, scalar_of
from millstream._gateway.apis.files import read_files
from millstream._gateway.apis.reply import ApiReply, check_reply, contents_of, result_of
from millstream._gateway.apis.request import (
    JSON,
    ApiRequest,
    build_request,
    items_of,
    without_pairs,
)
from millstream._gateway.names import fit_name, safe_names, unused_name, with_safe_names
from millstream._server.calls.call import Call
from millstream._server.features.resources import Resource, Template
from millstream._server.features.sources import ItemSource
from millstream._server.features.tools import Tool
from millstream._server.functions.plan import ArgumentError
from millstream._server.functions.problems import MAX_DECIDING_STEPS, describe_problems, find_problems
from millstream.protocol import (
    INTERNAL_ERROR,
    Json,
    ToolUnavailable,
    decode_object,
    is_array,
    is_object,
    members,
)

_logger = logging.getLogger("millstream.gateway")

_TIMEOUT = 30.0
_HTTP_CLIENTS = "httpx2", "httpx"
_MAX_REPLY = 64 * 1024 * 1024
"""Maximum size of a response, in bytes."""
_MAX_REDIRECTS = 3
_MAX_DEPTH = 32
"""Maximum depth of objects that get missing values."""


class RouteKind(Enum):
    """The kind of item that an operation becomes."""

    TOOL = "tools"
    RESOURCE = "resources"
    TEMPLATE = "templates"
    EXCLUDE = ""


class RouteMap(Struct, frozen=True):
    """Maps operations to a kind: ``RouteMap(methods=["GET"], pattern=r"/books/.*", kind=RouteKind.RESOURCE)``."""

    methods: Sequence[str] = ()
    """HTTP methods, in upper case, or empty for all."""
    pattern: str = ""
    """Regular expression to search for in the path."""
    tags: frozenset[str] | set[str] = frozenset()
    """Tags that an operation must all have."""
    kind: RouteKind = RouteKind.TOOL
    """What the operations become."""

    def matches(self, operation: Operation) -> bool:
        """Return whether it applies to an operation.

        Args:
            operation: An operation of the OpenAPI document.
        """
        method = not self.methods or operation.method in self.methods
        return method and re.search(self.pattern, operation.path) is not None and self.tags <= set(operation.tags)


async def send_by(client: Any, request: ApiRequest) -> ApiReply:
    """Return the response to a request that an httpx2 or httpx `AsyncClient` sends.

    Redirects are followed within the origin, unless the client follows them itself.

    Raises:
        ToolError: The API can't be reached, or its response is too large.
    """
    url, _, query = request.url.partition("?")
    try:
        call = client.build_request(request.method, url, headers=request.headers, content=request.content)
        if query:  # the client's own parameters would replace it
            kept = without_pairs(query, client.params).encode()
            call.url = call.url.copy_with(query=b"&".join(filter(None, (call.url.query, kept))))
        origin, redirects = origin_of(str(call.url)), 0
        while True:
            response = await client.send(call, stream=True)
            content = bytearray()
            try:
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > _MAX_REPLY:
                        raise ToolError(f"The API's response is larger than {_MAX_REPLY:,} bytes. Ask for less.")
            finally:
                await response.aclose()
            call, redirects = response.next_request, redirects + 1
            if call is None or redirects > _MAX_REDIRECTS or call.method != request.method:
                break
            if origin_of(str(call.url)) != origin:
                break
    except Exception as error:
        # An error of an application in this process isn't shown.
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _HTTP_CLIENTS:
            raise
        raise ToolUnavailable(f"{type(error).__name__}: {error}") from error
    headers = dict(response.headers.items())  # names are in lower case
    if (
        headers.get("content-encoding", "").lower()
        in f"gzip, deflate, {response.request.headers.get('accept-encoding')}"
    ):
        headers.pop("content-encoding", None)  # the client has decoded it
    return ApiReply(response.status_code, headers, bytes(content))


class OperationTool(Tool):
    """An operation as a tool."""

    def __init__(self, name: str, operation: Operation, client: Any) -> None:
        names = safe_names(operation.input_schema)
        schema = with_safe_names(operation.input_schema, names)
        run = partial(_run, client, operation, names)
        source = ItemSource(name, run, argument_reader(name, schema), schema=schema, asks=False)
        super().__init__(source, tags=operation.tags, replay=False)
        self._described = {
            **self._described, **operation.describe(name), "inputSchema": schema, "annotations": operation.hints
        }  # fmt: skip


def argument_reader(tool: str, schema: Json) -> Callable[[Any], Json]:
    """Return a function that decodes arguments and compares them with the schema.

    Names that the schema doesn't have are rejected, unless it allows them. A null that it doesn't allow is left out. A
    number or boolean that's written as text is read if the schema rejects text there. A required value that's missing
    is its default or constant. The document's patterns aren't checked, because they could take arbitrarily long. The
    API checks them.
    """
    schema = {"additionalProperties": False, **schema}
    return partial(_read_arguments, tool, schema, {**schema, "required": []}, _find_defaults(schema))


class _Defaults(Struct, frozen=True):
    """The values that an object or list gets where required ones are missing."""

    own: Json = {}
    """Required property -> its default or constant."""
    inside: Mapping[str, "_Defaults"] = {}
    """Property -> the values inside it."""
    items: "_Defaults | None" = None
    """The values inside each item of a list."""

    def fill(self, value: Any) -> None:
        """Add the missing values."""
        if is_object(value):
            for name in self.own.keys() - value.keys():
                value[name] = deepcopy(self.own[name])
            for name in self.inside.keys() & value.keys():
                self.inside[name].fill(value[name])
        elif self.items is not None and is_array(value):
            for each in value:
                self.items.fill(each)


def _find_defaults(schema: Any, depth: int = 0) -> _Defaults | None:
    """Return the values that a schema has for missing required ones, or None if it has none."""
    if not is_object(schema) or depth > _MAX_DEPTH:
        return None
    own: Json = {}
    inside: dict[str, _Defaults] = {}
    for part in (schema, *map(members, items_of(schema.get("allOf")))):
        for name, each in members(part.get("properties")).items():
            if (found := _find_defaults(each, depth + 1)) is not None:
                inside[name] = found
            if name in items_of(schema.get("required")) or name in items_of(part.get("required")):
                known = members(each)
                if "const" in known or "default" in known:
                    own[name] = known.get("const", known.get("default"))
    items = _find_defaults(schema.get("items"), depth + 1)
    return _Defaults(own, inside, items) if own or inside or items is not None else None


def _read_arguments(tool: str, schema: Json, optional: Json, defaults: _Defaults | None, raw: Any) -> Json:
    """See `argument_reader`.

    Raises:
        ArgumentError: The arguments are invalid.
    """
    problems = ""
    try:
        whole: Any = (arguments := decode_object(raw))
        for name in [name for name, value in arguments.items() if value is None]:
            if find_problems(optional, {name: None}):
                del arguments[name]
        if defaults is not None:
            defaults.fill(arguments)
        if found := find_problems(schema, arguments, one_of=False, formats=False, steps=MAX_DECIDING_STEPS):
            for each in found:
                with suppress(LookupError, ValueError):  # something is missing, or the arguments are invalid as a whole
                    *before, last = each.path
                    holder: Any = reduce(getitem, before, whole)
                    holder[last] = scalar_of(holder[last], ANY_SCALAR)
            problems = describe_problems(schema, arguments)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise ArgumentError(f"The arguments must be an object ({exc}).") from exc
    if problems:
        raise ArgumentError(f"Invalid arguments for tool {tool!r}: {problems}")
    return arguments


def _resource(operation: Operation, name: str, client: Any) -> Resource | Template:
    """Return an operation as a resource, or as a template if its path has variables."""
    variables = sorted(each for each, argument in operation.arguments.items() if argument.place == "path")

    async def run(values: Any, call: Call) -> Any:
        try:
            reply = check_reply(await send_by(client, build_request(operation, values or {})))
        except ToolError as error:
            raise ProtocolError(INTERNAL_ERROR, str(error)) from error
        return [EmbeddedResource(resource=contents_of("", reply))]

    schema = {"properties": {each: {"type": "string"} for each in variables}}
    source = ItemSource(name, run, lambda values: values, description=operation.description, schema=schema, asks=False)
    uri = "/".join((f"resource://{name}", *(f"{{{each}}}" for each in variables)))
    kind = Template if variables else Resource
    return kind(uri, source, mime_type=JSON, tags=operation.tags)


def register(
    add: Callable[[str, str, Any], object],
    spec: Any,
    client: Any = None,
    *,
    routes: Sequence[RouteMap] = (),
    names: Mapping[str, str] | None = None,
    choose: Callable[[Operation, RouteKind], RouteKind | None] | None = None,
    output_schemas: bool = False,
    hosts: Sequence[str] = (),
) -> None:
    """Register the operations of an OpenAPI document.

    Args:
        add: Adds an item of a kind and name to the server.
        spec: The document, version 2.0, 3.0, or 3.1, as a dict, or the path of its file in JSON or YAML.
        client: An httpx2 or httpx `AsyncClient`. By default, one whose base URL is the document's first server URL.
        routes: What the operations become. The first match wins; without a match, an operation becomes a tool.
        names: Names of tools and resources by `operationId`.
        choose: Called with each operation and its kind; returns another kind, or None to keep it.
        output_schemas: Whether tools have output schemas. A response that doesn't match is then an error.
        hosts: Origins of other servers that operations can use. The client's headers are also sent to them.

    Raises:
        ValueError: The document is invalid, or has no server and `client` isn't given.
        ImportError: `client` isn't given, and neither httpx2 nor httpx is installed.
        MissingExtra: The document is YAML, and the extra isn't installed.
    """
    source = read_files(spec) if isinstance(spec, str | Path) else spec
    document = Document(source, hosts=hosts, output_schemas=output_schemas)
    if client is None:
        url = document.url
        if not url.startswith(("http://", "https://")):
            raise ValueError(
                f"The document has no absolute server URL ({url!r}): pass client=httpx2.AsyncClient(base_url=…)"
            )
        client = _http().AsyncClient(base_url=url, timeout=_TIMEOUT)
    document.base = str(client.base_url)
    used_names: set[str] = set()
    for operation in document.operations():
        kind = next((each for each in routes if each.matches(operation)), RouteMap()).kind
        if choose is not None:
            kind = choose(operation, kind) or kind
        if kind is RouteKind.EXCLUDE:
            continue
        name = fit_name(unused_name(operation.name(names or {}), used_names))
        used_names.add(name)
        if kind is RouteKind.TOOL:
            add("tools", name, OperationTool(name, operation, client))
        else:
            item = _resource(operation, name, client)
            add("templates" if isinstance(item, Template) else "resources", item.name, item)
    document.log_skipped()


async def _run(client: Any, operation: Operation, names: Mapping[str, str], arguments: Any, call: Call) -> ToolResult:
    if names:
        arguments = {names.get(name, name): value for name, value in arguments.items()}
    reply = check_reply(await send_by(client, build_request(operation, arguments)))
    return result_of(operation, reply)


def _http() -> Any:
    for name in _HTTP_CLIENTS:
        try:
            return import_module(name)
        except ImportError:
            continue
    raise ImportError("from_openapi and from_fastapi require an HTTP client: pip install httpx2")


LOCAL_URL = "http://localhost"
"""Base URL of an application in this process."""


class LocalApp(Struct, eq=False):
    """An ASGI application in this process, with its lifespan: ``client = LocalApp(app).client()``."""

    app: Any
    _state: dict[str, Any] = {}
    """What its lifespan yielded, for its requests."""
    _runs: bool = False

    def client(self) -> Any:
        """Return an HTTP client of the application, an httpx2 or httpx `AsyncClient`."""
        http = _http()
        transport = http.ASGITransport(app=self._serve, raise_app_exceptions=False)  # they're status 500 under a server
        return http.AsyncClient(transport=transport, base_url=LOCAL_URL)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self.app({**scope, "state": self._state.copy()}, receive, send)
        except Exception:
            _logger.exception("%s %s failed in the application", scope["method"], scope["path"])
            raise

    @asynccontextmanager
    async def lifespan(self, server: Any = None) -> AsyncGenerator[Any]:
        """Run the application's lifespan, and yield its state.

        Args:
            server: The server. If it's mounted on the application, whoever serves that runs the lifespan.
        """
        enter = getattr(getattr(self.app, "router", None), "lifespan_context", None)
        mounted = [getattr(each, "app", None) for each in getattr(self.app, "routes", ())]
        if self._runs or enter is None or (server is not None and server in mounted):
            yield self._state
            return
        self._runs = True
        try:
            async with enter(self.app) as state:
                self._state = dict(state or {})
                yield self._state
        finally:
            self._runs, self._state = False, {}
