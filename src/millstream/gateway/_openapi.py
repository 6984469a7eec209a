"""Tools and resources from an OpenAPI document; each calls one operation of an API.

Used by `Server.from_openapi` and `Server.from_fastapi`. Schemas keep their shape, and references to the document's
components become references to ``$defs``.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import quote, unquote

import msgspec
from msgspec import Struct

from millstream._protocol.content import EmbeddedResource, ResourceContents
from millstream._protocol.errors import INTERNAL_ERROR, ProtocolError, ToolError, shorten
from millstream._protocol.json_schema import is_array, is_object
from millstream._protocol.jsonrpc import encode
from millstream._protocol.suggestions import SuggestionMeta
from millstream._server.calls.call import Call
from millstream._server.features.resources import Resource, Template
from millstream._server.features.sources import ItemSource, Read
from millstream._server.features.tools import Tool
from millstream._server.functions.arguments import ArgumentError
from millstream._server.functions.problems import MAX_LISTED, explain, find_problems
from millstream._server.functions.results import ToolResult
from millstream.gateway._credentials.source import check_forwarded

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_COMPONENT = "#/components/schemas/"
_MAX_INLINED_NODES = 10_000
"""Maximum nodes of a schema whose definitions are inlined."""
_MAX_NAME = 56
"""Maximum characters of a name."""
FORM, MULTIPART, JSON = "application/x-www-form-urlencoded", "multipart/form-data", "application/json"
TEXT = "text/plain"
_RESERVED_HEADERS = frozenset((
    "accept", "content-type", "authorization", "host", "content-length", "transfer-encoding", "connection", "te",
    "trailer", "upgrade", "expect", "keep-alive", "proxy-authorization", "proxy-connection", "cookie",
))  # fmt: skip
"""Headers that arguments can't set: OpenAPI ignores the first three, the others belong to the connection."""
_MAX_DECODINGS = 4
_MAX_ERROR_TEXT = 4000
"""Maximum characters of an error body in a message."""
_SEPARATORS = {"pipeDelimited": "|", "spaceDelimited": " "}
_KEYWORDS_WITH_NAMES = ("properties", "patternProperties", "$defs")
"""Keywords with named members, whose names can look like keywords."""


class Argument(Struct, frozen=True):
    """Where a tool's argument goes in the request."""

    name: str
    """Name in the API."""
    place: str
    """``path``, ``query``, ``header``, ``cookie``, ``field`` of the body, or ``body``."""
    form: str = ""
    """Encoding of an object or list in a query or form: the separator of a list's items, `deep` for
    ``name[key]=value``, `json`, or empty for one pair per item.
    """
    members: frozenset[str] | None = frozenset()
    """Properties of an object in a query that become pairs of their own; None for any."""


class Operation(Struct, frozen=True):
    """One operation of an API."""

    path: str
    method: str
    operation_id: str | None
    summary: str | None
    description: str | None
    tags: list[str]
    arguments: Mapping[str, Argument]
    """Arguments by the names that models use."""
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None
    wrapped: bool
    """Whether the response isn't an object, and is wrapped as `result`."""
    media: str
    """Media type of the body."""

    @property
    def summary_text(self) -> str:
        """The description for a model."""
        return self.description or self.summary or f"Executes {self.method} {self.path}"

    def name(self, names: Mapping[str, str]) -> str:
        """Return the name of the tool or resource."""
        short_id = (self.operation_id or "").split("__")[0]
        name = names.get(self.operation_id or "") or short_id or self.summary or f"{self.method}_{self.path}"
        return re.sub(r"_+", "_", re.sub(r"\W+", "_", name)).strip("_")[:_MAX_NAME]


class Document:
    """An OpenAPI document of version 3.0 or 3.1.

    Raises:
        ValueError: it isn't an OpenAPI document of these versions.
    """

    def __init__(self, spec: Any) -> None:
        if not is_object(spec) or not is_object(spec.get("paths")):
            raise ValueError("The OpenAPI document has no paths")
        if not str(spec.get("openapi", "")).startswith("3."):
            raise ValueError("The OpenAPI document must be version 3.0 or 3.1. Convert it first")
        self._spec: dict[str, Any] = spec

    @property
    def url(self) -> str:
        """URL of the API; empty if the document has none."""
        servers: list[dict[str, Any]] = self._spec.get("servers") or [{}]
        return str(servers[0].get("url", ""))

    def operations(self) -> Iterator[Operation]:
        """Yield the operations."""
        for path, item in self._spec["paths"].items():
            shared = self._resolve(item)
            for method in _METHODS:
                if is_object(shared.get(method)):
                    yield self._operation(path, method.upper(), shared, shared[method])

    def _operation(self, path: str, method: str, shared: dict[str, Any], operation: dict[str, Any]) -> Operation:
        parameters: dict[tuple[str, str], dict[str, Any]] = {}
        for node in (*operation.get("parameters", ()), *shared.get("parameters", ())):
            parameter = self._resolve(node)
            if parameter.get("in") == "header" and str(parameter.get("name")).lower() in _RESERVED_HEADERS:
                continue
            parameters.setdefault((parameter["name"], parameter["in"]), parameter)
        place_of_fields, fields, body_required, media, forms = self._body(operation)
        arguments: dict[str, Argument] = {}
        properties: dict[str, Any] = {}
        required: list[str] = []
        for (original_name, location), parameter in parameters.items():
            is_duplicate = original_name in fields or original_name in arguments
            name = f"{original_name}__{location}" if is_duplicate else original_name
            members = self._query_members(parameter.get("schema", {})) if location == "query" else frozenset[str]()
            arguments[name] = Argument(original_name, location, _form_of(parameter), members)
            description = str(parameter.get("description") or "")
            description = f"{description} ({location.capitalize()} parameter)".strip() if is_duplicate else description
            properties[name] = {**parameter.get("schema", {}), **({"description": description} if description else {})}
            if parameter.get("required") or location == "path":
                required.append(name)
        for name, schema in fields.items():
            arguments[name] = Argument(name, place_of_fields, forms.get(name, ""))
            properties[name] = schema
        required += body_required
        output, wrapped = self._output(operation)
        return Operation(
            path, method, operation.get("operationId"), operation.get("summary"), operation.get("description"),
            list(operation.get("tags") or ()), arguments,
            self._with_definitions({"type": "object", "properties": properties, "required": required}),
            output, wrapped, media,
        )  # fmt: skip

    def _body(self, operation: dict[str, Any]) -> tuple[str, dict[str, Any], list[str], str, dict[str, str]]:
        """Return where the body's fields go, the fields, the required ones, the media type, and their encodings."""
        body = self._resolve(operation.get("requestBody") or {})
        media, content = _content_of(body, (FORM, MULTIPART, TEXT))
        if not media:
            return "field", {}, [], "", {}
        schema: dict[str, Any] = content.get("schema") or {}
        fields, required = self._fields(schema)
        if not fields:
            name = re.sub(r"\W+", "_", str(self._resolve(schema).get("title", ""))).lower() or "body"
            return "body", {name: schema}, [name] if body.get("required") else [], media, {}
        encodings: dict[str, Any] = content.get("encoding") or {}
        forms = {name: _form_of(each) for name, each in encodings.items()}
        return "field", fields, required if body.get("required") else [], media, forms

    def _fields(self, schema: dict[str, Any], seen: set[int] | None = None) -> tuple[dict[str, Any], list[str]]:
        """Return the properties of an object, including those of its parts and variants, and the required ones."""
        resolved, visited = self._resolve(schema), set[int]() if seen is None else seen
        fields: dict[str, Any] = {}
        required_names: list[str] = []
        if id(resolved) in visited:
            return fields, required_names
        visited.add(id(resolved))
        for part in resolved.get("allOf") or ():
            more, required = self._fields(part, visited)
            fields |= more
            required_names += required
        fields |= resolved.get("properties") or {}
        required_names += resolved.get("required") or ()
        discriminator: dict[str, Any] = resolved.get("discriminator") or {}
        kinds: dict[str, str] = discriminator.get("mapping") or {}
        for kind in kinds.values():
            more, _ = self._fields({"$ref": kind if kind.startswith("#/") else _COMPONENT + kind}, visited)
            fields = more | fields
        return fields, list(dict.fromkeys(required_names))

    def _query_members(self, schema: dict[str, Any]) -> frozenset[str] | None:
        """Return the properties that a schema declares in any of its variants; None if an object can have any."""
        names: set[str] = set()
        pending, seen = [schema], set[int]()
        while pending:
            node = self._resolve(pending.pop())
            if id(node) in seen:
                continue
            seen.add(id(node))
            properties: dict[str, Any] = node.get("properties") or {}
            if node.get("additionalProperties", not properties and node.get("type") == "object"):
                return None
            names |= properties.keys()
            pending += (part for keyword in ("allOf", "anyOf", "oneOf") for part in node.get(keyword) or ())
        return frozenset(names)

    def _output(self, operation: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
        responses: dict[str, Any] = operation.get("responses") or {}
        code = next((each for each in sorted(responses) if each.startswith("2")), "")
        media, content = _content_of(self._resolve(responses.get(code) or {}), ())
        if not media:
            return None, False
        schema: dict[str, Any] = content.get("schema") or {}
        resolved = self._resolve(schema)
        if resolved.get("type") == "object" or "properties" in resolved:
            return self._with_definitions({**resolved, "type": "object"}, response=True), False
        found = {"type": "object", "properties": {"result": schema}, "required": ["result"]}
        return self._with_definitions(found, response=True), True

    def _write_only(self, schema: dict[str, Any]) -> frozenset[str]:
        """Return the write-only properties of an object."""
        fields, _ = self._fields(schema)
        return frozenset(
            name for name, each in fields.items() if is_object(each) and self._resolve(each).get("writeOnly") is True
        )

    # References

    def _resolve(self, node: dict[str, Any]) -> dict[str, Any]:
        """Return the target of a reference, or the node itself if it isn't one."""
        for _ in range(20):
            reference = node.get("$ref")
            if not isinstance(reference, str) or not reference.startswith("#/"):
                return node
            found: Any = self._spec
            for part in reference[2:].split("/"):
                found = found.get(part.replace("~1", "/").replace("~0", "~"), {}) if is_object(found) else {}
            node = cast("dict[str, Any]", found)
        return {}

    def _with_definitions(self, schema: dict[str, Any], *, response: bool = False) -> dict[str, Any]:
        """Return a schema with its definitions. The schema of a response has no write-only properties."""
        definitions: dict[str, Any] = {}

        def move(node: Any, hidden: frozenset[str] = frozenset()) -> Any:
            if is_array(node):
                return [move(each, hidden) for each in node]
            if not is_object(node):
                return node
            if response and not isinstance(node.get("$ref"), str):
                hidden |= self._write_only(node)
                node = without_properties(node, hidden)
            reference = node.get("$ref")
            if isinstance(reference, str) and reference.startswith(_COMPONENT):
                name = reference.removeprefix(_COMPONENT)
                if name not in definitions:
                    definitions[name] = {}
                    definitions[name] = move(self._resolve(node))
                return {**node, "$ref": f"#/$defs/{name}"}
            converted = _members(node, hidden, move)
            if node.get("nullable") is True and isinstance(converted.get("type"), str):
                converted["type"] = [converted["type"], "null"]  # the form of 3.1
            return converted

        converted = cast("dict[str, Any]", move(schema))
        if not definitions:
            return converted
        converted = {**converted, "$defs": definitions}
        flat = inline(converted, max_nodes=_MAX_INLINED_NODES)
        return converted if "$defs" in flat else flat


def _members(node: dict[str, Any], hidden: frozenset[str], convert: Callable[..., Any]) -> dict[str, Any]:
    """Return the keywords of a schema with their schemas converted. Parts of ``allOf`` describe the same object."""
    converted: dict[str, Any] = {}
    for key, value in node.items():
        if key in _KEYWORDS_WITH_NAMES and is_object(value):
            converted[key] = {name: convert(each) for name, each in value.items()}
        elif key != "nullable":
            converted[key] = convert(value, hidden if key == "allOf" else frozenset())
    return converted


def without_properties(node: dict[str, Any], hidden: frozenset[str]) -> dict[str, Any]:
    """Return the schema of an object without some of its properties."""
    result = dict(node)
    if is_object(node.get("properties")):
        result["properties"] = {name: each for name, each in node["properties"].items() if name not in hidden}
    if is_array(node.get("required")):
        result["required"] = [name for name in node["required"] if name not in hidden]
    return result


def _form_of(options: Mapping[str, Any]) -> str:
    """Return the encoding of a parameter or field (OpenAPI 3.1, Style Values); see `Argument.form`."""
    style = options.get("style", "form")
    if str(options.get("contentType", "")).partition(";")[0].endswith("json"):
        return "json"
    if style == "deepObject":
        return "deep"
    return "" if options.get("explode", style == "form") else _SEPARATORS.get(style, ",")


def _content_of(holder: dict[str, Any], other_types: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Return the media type and description of a body, preferring JSON; empty without one."""
    content: dict[str, Any] = holder.get("content") or {}
    for kind, description in content.items():
        plain = kind.partition(";")[0].strip()
        if plain == JSON or plain.endswith("+json") or plain in other_types:
            return kind, description
    return "", {}


def inline(schema: dict[str, Any], *, max_nodes: float = float("inf")) -> dict[str, Any]:
    """Return a schema with its definitions inlined. Recursive ones stay definitions.

    Args:
        schema: the schema, returned unchanged if the result would be too large.
        max_nodes: maximum nodes of the result.
    """
    definitions: dict[str, Any] = schema.get("$defs", {})
    recursive: dict[str, Any] = {}
    parts = count(1)

    def put(node: Any, inside: tuple[str, ...]) -> Any:
        if next(parts) > max_nodes:
            raise OverflowError
        if is_array(node):
            return [put(each, inside) for each in node]
        if not is_object(node):
            return node
        name = str(node.get("$ref", "")).rpartition("/")[2]
        if name in definitions:
            if name in inside:
                recursive[name] = definitions[name]
                return node
            rest = {key: value for key, value in node.items() if key != "$ref"}
            return {**put(definitions[name], (*inside, name)), **rest}
        return {key: put(value, inside) for key, value in node.items() if key != "$defs" or inside}

    try:
        inlined: dict[str, Any] = put({key: value for key, value in schema.items() if key != "$defs"}, ())
    except OverflowError:
        return schema
    return {**inlined, "$defs": definitions} if recursive else inlined


_FIRST_ERROR_STATUS, _TOO_MANY_REQUESTS = 400, 429
_TIMEOUT = 30.0


class RouteKind(Enum):
    """The kind of item that an operation becomes."""

    TOOL = "tools"
    RESOURCE = "resources"
    TEMPLATE = "templates"
    EXCLUDE = ""


@dataclass(frozen=True)
class RouteMap:
    """Maps operations to a kind: ``RouteMap(methods=["GET"], pattern=r"/books/.*", kind=RouteKind.RESOURCE)``.

    Args:
        methods: HTTP methods, in upper case; empty for all.
        pattern: regular expression to search for in the path.
        tags: tags that an operation must all have.
        kind: what the operations become.
    """

    methods: Sequence[str] = ()
    pattern: str = ""
    tags: frozenset[str] | set[str] = field(default_factory=frozenset[str])
    kind: RouteKind = RouteKind.TOOL

    def matches(self, operation: Operation) -> bool:
        """Return whether it applies to an operation."""
        method = not self.methods or operation.method in self.methods
        return method and re.search(self.pattern, operation.path) is not None and self.tags <= set(operation.tags)


class Api:
    """The API behind the operations.

    Args:
        client: an `AsyncClient` of httpx2 or httpx, or another object with its `request` method.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    async def request(
        self, operation: Operation, arguments: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> Any:
        """Call one operation and return the response.

        Args:
            operation: operation to call.
            arguments: arguments of its tool.
            headers: additional headers, which override those of arguments.

        Raises:
            ToolError: an argument is missing or changes the path, the API can't be reached, or it returns an error.
        """
        parts: dict[str, dict[str, Any]] = {
            location: {} for location in ("path", "query", "header", "cookie", "field", "body")
        }
        given = {each: value for name, value in arguments.items() if (each := operation.arguments.get(name))}
        for argument, value in given.items():
            if value is not None:
                parts[argument.place] |= _encode_argument(argument, value, given)
        if parts["cookie"]:
            parts["header"]["cookie"] = "; ".join(f"{name}={quote(value)}" for name, value in parts["cookie"].items())
        if headers:
            remaining = {name: each for name, each in parts["header"].items() if name.lower() not in headers}
            parts["header"] = {**remaining, **headers}
        options: dict[str, Any] = {"params": parts["query"] or None, "headers": parts["header"] or None}
        body = next(iter(parts["body"].values()), parts["field"] or None)
        if body is not None:
            options |= _body(operation, body, parts["header"])
        path = _path(operation, parts["path"])
        try:
            response = await self._client.request(operation.method, path, **options)
        except Exception as error:
            is_http_error = "Error" in type(error).__name__ or "Timeout" in type(error).__name__
            if isinstance(error, ToolError) or not is_http_error:
                raise
            raise ToolError(f"{type(error).__name__}: {error}") from error
        if response.status_code == _TOO_MANY_REQUESTS:
            raise ToolError("The API is rate limiting this server. Try again later.")
        if response.status_code >= _FIRST_ERROR_STATUS:
            reason = f" {response.reason_phrase}" if response.reason_phrase else ""
            body = shorten(str(_response_value(response)), _MAX_ERROR_TEXT)
            raise ToolError(f"HTTP error {response.status_code}:{reason} - {body}")
        return response


def _body(operation: Operation, body: Any, headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a request, as options of an HTTP client."""
    plain = operation.media.partition(";")[0].strip()
    if plain in (FORM, MULTIPART) and is_object(body):
        fields: dict[str, Any] = {}
        for name, value in body.items():
            fields |= _pairs(operation.arguments[name], value) if name in operation.arguments else {name: value}
        return {"data": fields} if plain == FORM else {"files": _parts(fields)}
    if operation.media == JSON:
        return {"json": body}
    written = body if plain == TEXT and isinstance(body, str) else encode(body)
    return {"content": written, "headers": {**headers, "content-type": operation.media}}


def _parts(fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the parts of a multipart body. An empty list is one part, since the body needs at least one."""
    pairs = [
        (name, each) for name, value in fields.items() for each in (value if is_array(value) and value else [value])
    ]
    return [(name, (None, each if isinstance(each, str) else encode(each))) for name, each in pairs]


def _encode_argument(argument: Argument, value: Any, given: Collection[Argument]) -> dict[str, Any]:
    """Return one argument as encoded in the request with all of the given arguments."""
    if argument.place == "query":
        return _expand(argument, value, given) if is_object(value) else _pairs(argument, value)
    return {argument.name: _as_text(value) if argument.place in ("header", "path", "cookie") else value}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else encode(value).decode()


def _expand(argument: Argument, value: dict[str, Any], given: Collection[Argument]) -> dict[str, Any]:
    """Return the pairs of an object in a query. None of them can be read as another argument of the request."""
    if (argument.members is not None and not argument.members) or argument.form == "json":
        return {argument.name: encode(value).decode()}
    deep = argument.form == "deep"
    others = [each.name for each in given if each.place == "query" and each is not argument]
    plain_names = {_plain_name(each) for each in others}
    pairs: dict[str, Any] = {}
    for key, each in value.items():
        name = f"{argument.name}[{key}]" if deep else key
        taken = name.casefold() in map(str.casefold, others) or "[" in key if deep else _plain_name(key) in plain_names
        if taken or (argument.members is not None and key not in argument.members):
            raise ToolError(f"{argument.name} can't contain {key[:_MAX_NAME]!r}. Remove it.")
        pairs[name] = encode(each).decode() if is_object(each) else each
    if deep or not argument.form:
        return pairs
    return {argument.name: argument.form.join(_as_text(each) for pair in pairs.items() for each in pair)}


def _plain_name(name: str) -> str:
    """Return the name that lenient frameworks read: without brackets, and regardless of case, dots, and spaces."""
    return re.sub(r"\W", "_", name.partition("[")[0].strip().casefold())


def _pairs(argument: Argument, value: Any) -> dict[str, Any]:
    """Return the pairs of a value in a query or form. Lists become several pairs with one name."""
    if argument.form == "json" and not isinstance(value, str):
        return {argument.name: encode(value).decode()}
    if is_array(value) and value and argument.form not in ("", "deep"):
        return {argument.name: argument.form.join(map(_as_text, value))}
    return {argument.name: value}


def _path(operation: Operation, values: Mapping[str, Any]) -> str:
    def part(found: re.Match[str]) -> str:
        if found[1] not in values:
            raise ToolError(f"Missing required path parameters: {found[1]!r}")
        value = str(values[found[1]])
        if not value or has_dot_segment(value):
            raise ToolError(f"{found[1]} can't be {value[:_MAX_NAME]!r}: that would change the path")
        return quote(value, safe="")

    return re.sub(r"\{([^}]+)\}", part, operation.path)


def has_dot_segment(path: str) -> bool:
    """Return whether a path contains a segment such as ``..``, even after repeated decoding."""
    for _ in range(_MAX_DECODINGS):
        if any(part in (".", "..") for part in re.split(r"[/\\]", path)):
            return True
        decoded = unquote(path)
        if decoded == path:
            return False
        path = decoded
    return True


def _response_value(response: Any) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text


class OperationTool(Tool):
    """An operation as a tool."""

    __slots__ = ()

    def __init__(self, operation: Operation, name: str, api: Api) -> None:
        async def run(arguments: dict[str, Any], call: Call) -> ToolResult:
            return result_of(operation, await api.request(operation, arguments))

        source = ItemSource(
            name, run, argument_reader(name, operation.input_schema), description=operation.summary_text,
            schema=operation.input_schema,
        )  # fmt: skip
        super().__init__(source, tags=operation.tags)
        if operation.output_schema is not None:
            self._described = {**self._described, "outputSchema": operation.output_schema}


def argument_reader(name: str, schema: dict[str, Any]) -> Read:
    """Return a function that decodes the arguments of an operation's tool and compares them with its schema.

    The patterns of a document aren't tried, because they could take any time. The API decides.
    """

    def read(raw: Any) -> dict[str, Any]:
        try:
            arguments = _object_decoder.decode(raw)
            present = {each: value for each, value in arguments.items() if value is not None}
            problems = find_problems(schema, present, lax=True, matches=lambda pattern, text: True)
            found = list(islice(problems, MAX_LISTED))
        except (msgspec.DecodeError, RecursionError) as exc:
            raise ArgumentError(f"The arguments must be an object ({exc}).") from exc
        if found:
            raise ArgumentError(f"Invalid arguments for tool {name!r}: {explain(found, schema)}")
        return arguments

    return read


_object_decoder = msgspec.json.Decoder(dict[str, Any])


def result_of(operation: Operation, response: Any) -> ToolResult:
    """Return the tool result for a successful response."""
    try:
        value: Any = response.json()
    except ValueError:
        value = response.text
        if operation.output_schema is None:
            return ToolResult(value)
    structured = value if is_object(value) and not operation.wrapped else {"result": value}
    return ToolResult(encode(structured).decode(), structured)


def _resource(operation: Operation, name: str, api: Api) -> Resource | Template:
    """Return an operation as a resource, or as a template if its path has variables."""
    variables = sorted(each for each, argument in operation.arguments.items() if argument.place == "path")

    async def run(values: Any, call: Call) -> Any:
        try:
            response = await api.request(operation, values or {})
        except ToolError as error:
            raise ProtocolError(INTERNAL_ERROR, str(error)) from error
        return [EmbeddedResource(resource=_contents(call.name, response))]

    schema = {"properties": {each: {"type": "string"} for each in variables}}
    source = ItemSource(name, run, lambda values: values, description=operation.summary_text, schema=schema)
    uri = "/".join((f"resource://{name}", *(f"{{{each}}}" for each in variables)))
    kind = Template if variables else Resource
    return kind(uri, source, mime_type=JSON, tags=operation.tags)


def _contents(uri: str, response: Any) -> ResourceContents:
    kind = response.headers.get("content-type", JSON).partition(";")[0]
    if kind.startswith("text/") or kind.endswith(("json", "xml")):
        return ResourceContents(uri, kind, text=response.text)
    return ResourceContents(uri, kind, blob=response.content)


class ItemRegistry(Protocol):
    """The definition of a server, where items are registered."""

    def add(self, kind: str, key: str, item: Any) -> None:
        """Register an item."""


def register(
    catalog: ItemRegistry,
    spec: Any,
    client: Any = None,
    *,
    routes: Sequence[RouteMap] = (),
    names: Mapping[str, str] | None = None,
    choose: Callable[[Operation, RouteKind], RouteKind | None] | None = None,
) -> None:
    """Register the operations of an OpenAPI document.

    Args:
        catalog: definition of the server.
        spec: the document, version 3.0 or 3.1, as a dict.
        client: an `AsyncClient` of httpx2 or httpx; by default one for the first server of the document.
        routes: what the operations become. The first match wins; without a match, an operation becomes a tool.
        names: names of tools and resources by `operationId`.
        choose: called with each operation and its kind; returns another kind, or None to keep it.

    Raises:
        ValueError: the document is invalid, or has no server and `client` isn't given.
        ImportError: `client` isn't given, and neither httpx2 nor httpx is installed.
    """
    document = Document(spec)
    api = Api(client if client is not None else _client_of_url(document.url))
    used_names: set[str] = set()
    for operation in document.operations():
        kind = next((each for each in routes if each.matches(operation)), RouteMap()).kind
        if choose is not None:
            kind = choose(operation, kind) or kind
        if kind is RouteKind.EXCLUDE:
            continue
        operation_name = operation.name(names or {})
        name = next(
            each
            for each in chain((operation_name,), (f"{operation_name}_{n}" for n in count(2)))
            if each not in used_names
        )
        used_names.add(name)
        if kind is RouteKind.TOOL:
            catalog.add("tools", name, OperationTool(operation, name, api))
        else:
            item = _resource(operation, name, api)
            catalog.add("templates" if isinstance(item, Template) else "resources", item.name, item)


def _http() -> Any:
    for name in ("httpx2", "httpx"):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise ImportError("from_openapi and from_fastapi require an HTTP client: pip install httpx2")


def _client_of_url(url: str) -> Any:
    if not url.startswith(("http://", "https://")):
        raise ValueError(
            f"The document has no absolute server URL ({url!r}): pass client=httpx2.AsyncClient(base_url=…)"
        )
    return _http().AsyncClient(base_url=url, timeout=_TIMEOUT)


def client_of_app(app: Any) -> Any:
    """Return an HTTP client for an ASGI application in this process."""
    http = _http()
    return http.AsyncClient(transport=http.ASGITransport(app=app), base_url="http://localhost")


class OpenApi(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, metaclass=SuggestionMeta):
    """An API, and which operations to offer. ``OpenApi(document="https://shop.example/openapi.json",
    tags=("orders",))``
    """

    document: Any
    """URL or file of an OpenAPI document in JSON, the document as a dict, or a FastAPI application."""
    base_url: str = ""
    """Base URL of the API; by default the first server of the document, which must have the document's own origin."""
    tags: tuple[str, ...] = ()
    """Offer only operations with one of these tags."""
    operations: tuple[str, ...] = ()
    """Offer only operations whose name, or method and path, match one of these patterns: ``GET /orders/*``."""


class ApiConfig(Protocol):
    """The part of an upstream's configuration that an API uses."""

    @property
    def name(self) -> str: ...
    @property
    def target(self) -> Any: ...
    @property
    def openapi(self) -> Any: ...
    @property
    def auth(self) -> Any: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def forward_headers(self) -> Sequence[str]: ...


def check_api(config: ApiConfig) -> None:
    """Check that an API can be an upstream.

    Raises:
        ValueError: the configuration is invalid; the message says why.
    """
    if config.target is not None:
        raise ValueError(f"upstream {config.name!r}: pass either a target or openapi=, not both")
    document = config.openapi.document if isinstance(config.openapi, OpenApi) else config.openapi
    if not (is_application(document) or isinstance(document, str | Path | dict)):
        raise ValueError(
            f"upstream {config.name!r}: openapi= takes the URL or file of a document, the document as a dict, or a "
            "FastAPI application"
        )
    if is_application(document):
        if config.auth is not None or config.headers:
            raise ValueError(
                f"upstream {config.name!r}: an application in this process doesn't support auth and "
                "headers. Remove them"
            )
        check_forwarded(config.name, config.forward_headers, {})


def is_application(document: Any) -> bool:
    """Return whether a document is an application that generates one, such as FastAPI's."""
    return callable(getattr(document, "openapi", None))


__all__ = ["OpenApi", "Operation", "RouteKind", "RouteMap", "register"]
