"""Servers made of an OpenAPI document: each operation is a tool, a resource or a template, and calls the API."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from itertools import chain, count
from typing import Any
from urllib.parse import quote

from millstream._protocol.json_schema import is_array, is_object
from millstream.compat import _types as types
from millstream.compat._pydantic_parts import to_json
from millstream.compat.fastmcp._exceptions import ResourceError, ToolError
from millstream.compat.fastmcp._injection import RunInThread
from millstream.compat.fastmcp._openapi_routes import FORM, JSON, MULTIPART, TEXT, Argument, Document, HTTPRoute
from millstream.compat.fastmcp._proxy import bare_signature
from millstream.compat.fastmcp._resources import Resource, ResourceContent, ResourceResult
from millstream.compat.fastmcp._templates import ResourceTemplate
from millstream.compat.fastmcp._tools import ToolResult
from millstream.compat.fastmcp._transforming import StandaloneTool
from millstream.compat.fastmcp._ways import Ways

_REFUSED, _TOO_MANY = 400, 429
_PATIENCE = 30.0


class MCPType(Enum):
    """What becomes of an operation."""

    TOOL = "TOOL"
    RESOURCE = "RESOURCE"
    RESOURCE_TEMPLATE = "RESOURCE_TEMPLATE"
    EXCLUDE = "EXCLUDE"


@dataclass
class RouteMap:
    """Which operations become what: ``RouteMap(methods=["GET"], pattern=r"/books/.*", mcp_type=MCPType.RESOURCE)``."""

    methods: Sequence[str] | str = "*"
    pattern: Any = ".*"
    tags: set[str] = field(default_factory=set[str])
    mcp_type: MCPType = MCPType.TOOL
    mcp_tags: set[str] = field(default_factory=set[str])

    def fits(self, route: HTTPRoute) -> bool:
        """Whether it is about an operation."""
        method = self.methods == "*" or route.method in self.methods
        return method and re.search(self.pattern, route.path) is not None and self.tags <= set(route.tags)


class Busy(ToolError, ResourceError):
    """The API wants fewer requests; the model sees this text and no more."""


class Api:
    """The API behind the operations.

    Args:
        client: of httpx2 or httpx; whatever has its `request`.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    async def ask(self, route: HTTPRoute, arguments: Mapping[str, Any]) -> Any:
        """The response to one operation.

        Raises:
            ValueError: an argument is missing or leads to another path, there's no answer, or it is an error.
            Busy: it wants fewer requests.
        """
        parts: dict[str, dict[str, Any]] = {
            place: {} for place in ("path", "query", "header", "cookie", "field", "body")
        }
        for name, value in arguments.items():
            argument = route.arguments.get(name)
            if argument is not None and value is not None:
                parts[argument.place] |= _written(argument, value)
        given: dict[str, Any] = {"params": parts["query"] or None, "headers": parts["header"] or None}
        body = next(iter(parts["body"].values()), parts["field"] or None)
        if body is not None:
            given |= _body(route, body, parts["header"])
        if parts["cookie"]:
            cookies = "; ".join(f"{name}={quote(str(value))}" for name, value in parts["cookie"].items())
            given["headers"] = {**(given["headers"] or {}), "cookie": cookies}
        try:
            response = await self._client.request(route.method, _path(route, parts["path"]), **given)
        except Exception as error:
            if "Error" not in type(error).__name__ and "Timeout" not in type(error).__name__:
                raise
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if response.status_code == _TOO_MANY:
            raise Busy("Rate limited by upstream API, please retry later")
        if response.status_code >= _REFUSED:
            raise ValueError(f"HTTP error {response.status_code}: {response.reason_phrase} - {_said(response)}")
        return response


def _body(route: HTTPRoute, body: Any, headers: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request, as the options of an HTTP client have it."""
    plain = route.media.partition(";")[0].strip()
    if plain in (FORM, MULTIPART) and is_object(body):
        fields: dict[str, Any] = {}
        for name, value in body.items():
            fields |= _pairs(route.arguments[name], value) if name in route.arguments else {name: value}
        return {"data": fields} if plain == FORM else {"files": _parts(fields)}
    if route.media == JSON:
        return {"json": body}
    written = body if plain == TEXT and isinstance(body, str) else to_json(body)
    return {"content": written, "headers": {**headers, "content-type": route.media}}


def _parts(fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The parts of a multipart body; an empty list is one that says so, as in fastmcp."""
    several = [
        (name, each) for name, value in fields.items() for each in (value if is_array(value) and value else [value])
    ]
    return [(name, (None, each if isinstance(each, str) else to_json(each))) for name, each in several]


def _written(argument: Argument, value: Any) -> dict[str, Any]:
    """One argument as the request has it."""
    if argument.place == "query":
        return _pairs(argument, value)
    if argument.place in ("header", "path") and not isinstance(value, str):
        value = to_json(value).decode() if isinstance(value, bool | list | dict) else str(value)
    return {argument.name: value}


def _pairs(argument: Argument, value: Any) -> dict[str, Any]:
    """A value in a query or a form, whose lists stand for several pairs of one name."""
    if argument.form == "json" and not isinstance(value, str):
        return {argument.name: to_json(value).decode()}
    if is_object(value) and argument.place == "query":
        return {f"{argument.name}[{key}]" if argument.form == "deep" else key: each for key, each in value.items()}
    if is_array(value) and value and argument.form not in ("", "deep"):
        return {argument.name: argument.form.join(map(str, value))}
    return {argument.name: value}


def _path(route: HTTPRoute, values: Mapping[str, Any]) -> str:
    def part(found: re.Match[str]) -> str:
        if found[1] not in values:
            raise ValueError(f"Missing required path parameters: {found[1]!r}")
        text = quote(str(values[found[1]]), safe="")
        if text in ("", ".", ".."):
            raise ValueError(f"{found[1]} can't be {text!r}: that would be another path")
        return text

    return re.sub(r"\{([^}]+)\}", part, route.path)


def _said(response: Any) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text


class OpenAPITool(StandaloneTool):
    """An operation as a tool."""

    def __init__(self, route: HTTPRoute, name: str, api: Api, ways: Ways, tags: set[str], *, promises: bool) -> None:
        super().__init__(bare_signature(name, route.told, route.input_schema), ways, promise=None, tags=tags)
        self.description: str | None = route.told
        self._route = route
        self._api = api
        self._promises = promises

    @property
    def output_schema(self) -> dict[str, Any] | None:
        """What the document says of the answer."""
        if self._promises or self._route.output_schema is None:
            return self._route.output_schema
        return {"type": "object", "additionalProperties": True}

    async def _call(self, arguments: dict[str, Any], thread: RunInThread) -> ToolResult:
        response = await self._api.ask(self._route, arguments)
        made = ToolResult.__new__(ToolResult)
        made.meta, made.is_error, made.structured_content = None, False, None
        try:
            value: Any = response.json()
        except ValueError:
            made.content = [types.TextContent(text=response.text)]
            if self.output_schema is not None and not self._promises:
                made.structured_content = {"result": response.text}
            return made
        made.structured_content = value if is_object(value) and not self._route.wrapped else {"result": value}
        made.content = [types.TextContent(text=to_json(made.structured_content).decode())]
        return made


class OpenAPIResource(Resource):
    """An operation as a resource."""

    route: Any
    api: Any

    async def read(self) -> Any:
        """What the API gives."""
        return _content(await self.api.ask(self.route, {}))

    async def read_in(self, thread: RunInThread) -> Any:
        """The same."""
        return await self.read()


class OpenAPIResourceTemplate(ResourceTemplate):
    """An operation with variables in its path as a template."""

    def __init__(self, route: HTTPRoute, name: str, api: Api, ways: Ways, tags: set[str]) -> None:
        variables = "/".join(f"{{{each}}}" for each in _variables(route))
        uri = f"resource://{name}/{variables}"
        super().__init__(bare_signature(name, route.told, {}), uri, ways, mime_type="application/json", tags=tags)
        self.description: str | None = route.told
        self._route = route
        self._api = api

    async def read_in(self, variables: Mapping[str, Any], thread: RunInThread) -> Any:
        """What the API gives for these values."""
        return _content(await self._api.ask(self._route, variables))


def _variables(route: HTTPRoute) -> list[str]:
    return sorted(name for name, argument in route.arguments.items() if argument.place == "path")


def _content(response: Any) -> ResourceResult:
    kind = response.headers.get("content-type", "application/json").partition(";")[0]
    if kind.endswith("json"):
        return ResourceResult([ResourceContent(json.dumps(response.json()), kind)])
    textual = kind.startswith("text/") or kind.endswith("xml")
    return ResourceResult([ResourceContent(response.text if textual else response.content, kind)])


def offer_api(
    server: Any,
    spec: Any,
    client: Any = None,
    *,
    route_maps: Sequence[RouteMap] | None = None,
    route_map_fn: Callable[..., Any] | None = None,
    mcp_component_fn: Callable[..., Any] | None = None,
    mcp_names: Mapping[str, str] | None = None,
    tags: set[str] | None = None,
    validate_output: bool = True,
) -> None:
    """Let a server offer the operations of an OpenAPI document; the arguments are those of `FastMCP.from_openapi`.

    Raises:
        ValueError: it's no such document, or says not where the API is, and there is no client.
        ImportError: there is no client, and neither httpx2 nor httpx.
    """
    document = Document(spec)
    api = Api(client if client is not None else _client(document.url))
    taken: set[str] = set()
    for route in document.routes():
        fitting = next((each for each in route_maps or () if each.fits(route)), RouteMap())
        kind = fitting.mcp_type
        if route_map_fn is not None:
            kind = route_map_fn(route, kind) or kind
        if kind.value == "EXCLUDE":
            continue
        own = route.name(mcp_names or {})
        name = next(each for each in chain((own,), (f"{own}_{n}" for n in count(2))) if each not in taken)
        taken.add(name)
        labels = {*route.tags, *fitting.mcp_tags, *(tags or ())}
        made: Any = _made(kind.value, route, name, api, server.ways, labels, promises=validate_output)
        if mcp_component_fn is not None:
            made = mcp_component_fn(route, made) or made
        server.offered.add(_KINDS[kind.value], made)


_KINDS = {"TOOL": "tools", "RESOURCE": "resources", "RESOURCE_TEMPLATE": "templates"}


def _made(kind: str, route: HTTPRoute, name: str, api: Api, ways: Ways, tags: set[str], *, promises: bool) -> Any:
    if kind == "TOOL":
        return OpenAPITool(route, name, api, ways, tags, promises=promises)
    if kind == "RESOURCE_TEMPLATE":
        return OpenAPIResourceTemplate(route, name, api, ways, tags)
    about = {"description": route.told, "mime_type": "application/json", "tags": tags}
    return OpenAPIResource(uri=f"resource://{name}", name=name, route=route, api=api, **about)  # type: ignore[arg-type]


def _http() -> Any:
    for name in ("httpx2", "httpx"):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise ImportError("from_openapi and from_fastapi need an HTTP client: pip install httpx2")


def _client(url: str) -> Any:
    if not url.startswith(("http://", "https://")):
        raise ValueError(
            f"The document doesn't say where the API is ({url!r}): give client=httpx2.AsyncClient(base_url=…)"
        )
    return _http().AsyncClient(base_url=url, timeout=_PATIENCE)


def client_of(app: Any, options: Mapping[str, Any] | None) -> Any:
    """An HTTP client of an ASGI application in this process."""
    http = _http()
    given: dict[str, Any] = {"base_url": "http://fastapi", **(options or {})}
    return http.AsyncClient(transport=http.ASGITransport(app=app), **given)
