"""Tools and resources from an OpenAPI document; each calls one operation of an API.

Used by `Server.from_openapi` and `Server.from_fastapi`. Schemas keep their shape, and references to the document's
components become references to ``$defs``.
"""

import logging
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from importlib import import_module
from itertools import chain, count
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

import msgspec
from msgspec import Struct

from millstream import EmbeddedResource, ProtocolError, ResourceContents, ToolError, ToolResult
from millstream._protocol.foreign import fits_keyword
from millstream._protocol.json_schema import inline_references, map_subschemas, value_at_pointer
from millstream._server.calls.call import Call
from millstream._server.features.resources import Resource, Template
from millstream._server.features.sources import ItemSource
from millstream._server.features.tools import Tool, check_tool_name
from millstream._server.functions.plan import ArgumentError
from millstream._server.functions.problems import describe_problems
from millstream.protocol import (
    INTERNAL_ERROR,
    Confidential,
    Json,
    SuggestionMeta,
    decode_object,
    encode,
    is_array,
    is_object,
    members,
    shorten,
)

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_COMPONENT = "#/components/schemas/"
_PLACES = "path", "query", "header", "cookie"
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
_NOT_KEPT = frozenset((
    "$anchor", "$defs", "$dynamicAnchor", "$dynamicRef", "$id", "$ref", "$schema", "definitions",
))  # fmt: skip
"""Keywords that have another meaning, or none, at the place to which a definition is moved."""
MAX_LOGGED = 20
"""Maximum skipped operations to log by name."""
_MAX_ROUTE = 200
logger = logging.getLogger("millstream.gateway")


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
    input_schema: Json
    output_schema: Json | None
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

    def describe(self, name: str) -> Json:
        """Return the description of its tool."""
        output = {} if self.output_schema is None else {"outputSchema": self.output_schema}
        return {"name": name, "description": self.summary_text, "inputSchema": self.input_schema, **output}


def unused_name(name: str, taken: Collection[str]) -> str:
    """Return a name, with a number if it's taken."""
    return next(each for each in chain((name,), (f"{name}_{n}" for n in count(2))) if each not in taken)


class Document:
    """An OpenAPI document of version 3.0 or 3.1.

    Raises:
        ValueError: It isn't an OpenAPI document of these versions.
    """

    def __init__(self, spec: Any) -> None:
        if not is_object(spec) or not is_object(spec.get("paths")):
            raise ValueError("The OpenAPI document has no paths.")
        if not str(spec.get("openapi", "")).startswith("3."):
            raise ValueError("The OpenAPI document must be version 3.0 or 3.1. Convert it first.")
        self._spec: Json = spec
        self._request = _Conversion(self, "readOnly")
        self._response = _Conversion(self, "writeOnly")
        self.skipped: dict[str, str] = {}
        """Method and path of each operation that isn't offered, and the reason."""

    @property
    def url(self) -> str:
        """URL of the API, in which variables have their default values; empty if the document has none."""
        server = members(next(iter(_items(self._spec.get("servers"))), None))
        values = members(server.get("variables"))
        return re.sub(
            "{(.*?)}", lambda name: str(members(values.get(name[1])).get("default", "")), str(server.get("url", ""))
        )

    @property
    def title(self) -> str:
        """Title of the API, for logs."""
        return str(members(self._spec.get("info")).get("title") or "API")

    def operations(self) -> Iterator[Operation]:
        """Yield the operations. One that can't be read is added to `skipped`."""
        for path, item in self._spec["paths"].items():
            for method in map(str.upper, _METHODS if is_object(item) else ()):
                try:
                    shared = self._resolve(item)
                    if is_object(operation := shared.get(method.lower())):
                        yield self._operation(path, method, shared, operation)
                except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as exc:
                    self.skip(method, path, f"it's malformed: {type(exc).__name__} ({exc})")

    def skip(self, method: str, path: str, reason: str) -> None:
        """Record that an operation isn't offered."""
        self.skipped[f"{method} {path}"[:_MAX_ROUTE]] = reason

    def log_skipped(self, name: str, known: Collection[str] = ()) -> None:
        """Log the operations that aren't offered, except for those that are already known."""
        new = [(route, reason) for route, reason in self.skipped.items() if route not in known]
        for route, reason in new[:MAX_LOGGED]:
            logger.warning("%s: skipped %s, because %s", name, route, reason)
        if len(new) > MAX_LOGGED:
            logger.warning("%s: skipped %d more operations", name, len(new) - MAX_LOGGED)

    def _operation(self, path: str, method: str, shared: Json, operation: Json) -> Operation:
        arguments, fields, body_required, media = self._body(operation)
        properties: Json = {}
        required: list[str] = []
        seen: set[tuple[str, str]] = set()
        for node in (*_items(operation.get("parameters")), *_items(shared.get("parameters"))):
            parameter = self._resolve(node)
            original_name, location = parameter.get("name"), parameter.get("in")
            if not isinstance(original_name, str) or location not in _PLACES:
                raise ValueError("a parameter has no name, or isn't in path, query, header, or cookie")
            is_reserved = location == "header" and original_name.lower() in _RESERVED_HEADERS
            if is_reserved or (original_name, location) in seen:
                continue
            seen.add((original_name, location))
            name, description = original_name, str(parameter.get("description") or "")
            if name in arguments:
                name = f"{name}__{location}"
                description = f"{description} ({location.capitalize()} parameter)".strip()
            media_type, content = _content_of(parameter, ())
            schema: Json = content.get("schema") or parameter.get("schema") or {}
            query_members = self._query_members(schema) if location == "query" else frozenset[str]()
            form = "json" if media_type else _form_of(parameter)
            arguments[name] = Argument(original_name, location, form, query_members)
            properties[name] = {**schema, **({"description": description} if description else {})}
            if parameter.get("required") or location == "path":
                required.append(name)
        whole = {"type": "object", "properties": properties | fields, "required": required + body_required}
        output, wrapped = self._output(operation)
        texts = {key: value for key, value in operation.items() if isinstance(value, str)}
        return Operation(
            path, method, texts.get("operationId"), texts.get("summary"), texts.get("description"),
            [each for each in _items(operation.get("tags")) if isinstance(each, str)], arguments,
            self._request.schema(whole), output, wrapped, media,
        )  # fmt: skip

    def _body(self, operation: Json) -> tuple[dict[str, Argument], Json, list[str], str]:
        """Return the arguments for the body, their schemas, the required ones, and the media type."""
        body = self._resolve(operation.get("requestBody") or {})
        media, content = _content_of(body, (FORM, MULTIPART, TEXT))
        if not media:
            return {}, {}, [], ""
        schema: Json = content.get("schema") or {}
        fields, required = self.fields(schema)
        if fields:
            encodings: Json = (content.get("encoding") or {}) if _plain(media) in (FORM, MULTIPART) else {}
            arguments = {name: Argument(name, "field", _form_of(encodings.get(name, {}))) for name in fields}
        else:
            name = re.sub(r"\W+", "_", str(self.target(schema).get("title", ""))).lower() or "body"
            arguments, fields, required = {name: Argument(name, "body")}, {name: schema}, [name]
        return arguments, fields, required if body.get("required") else [], media

    def _parts(self, schema: Any, seen: set[int], *keywords: str) -> Iterator[Json]:
        """Yield a schema, and the schemas in some of its keywords, except for those that were `seen`."""
        pending = [schema]
        while pending:
            node = self.target(pending.pop())
            if id(node) not in seen:
                seen.add(id(node))
                yield node
                pending += (part for keyword in keywords for part in _items(node.get(keyword)))

    def fields(self, schema: Json) -> tuple[Json, list[str]]:
        """Return the properties of an object, including those of its parts and variants, and the required ones."""
        fields: Json = {}
        required: list[Any] = []
        seen, variants = set[int](), [schema]
        for number, variant in enumerate(variants):
            for node in self._parts(variant, seen, "allOf"):
                fields = members(node.get("properties")) | fields
                if not number:
                    required = _items(node.get("required")) + required
                kinds = members(members(node.get("discriminator")).get("mapping")).values()
                variants += ({"$ref": each if each.startswith("#/") else _COMPONENT + each} for each in map(str, kinds))
        return fields, list(dict.fromkeys(each for each in required if isinstance(each, str)))

    def _query_members(self, schema: Json) -> frozenset[str] | None:
        """Return the properties that a schema declares in any of its variants; None if an object can have any."""
        names: set[str] = set()
        for node in self._parts(schema, set(), "allOf", "anyOf", "oneOf"):
            properties = members(node.get("properties"))
            if node.get("additionalProperties", not properties and node.get("type") == "object"):
                return None
            names |= properties.keys()
        return frozenset(names)

    def _output(self, operation: Json) -> tuple[Json | None, bool]:
        responses: Json = operation.get("responses") or {}
        code = next((each for each in sorted(responses, key=str) if str(each).startswith("2")), "")
        media, content = _content_of(self.target(responses.get(code)), ())
        if not media:
            return None, False
        schema: Json = content.get("schema") or {}
        resolved = self.target(schema)
        wrapped = resolved.get("type") != "object" and "properties" not in resolved
        found = {"properties": {"result": schema}, "required": ["result"]} if wrapped else resolved
        return self._response.schema({**found, "type": "object"}), wrapped

    def _resolve(self, node: Any) -> Json:
        """Return the target of a reference, or the node itself if it isn't one.

        Raises:
            LookupError: The reference leaves the document, or leads to nothing.
        """
        for _ in range(20):
            if not is_object(node):
                break
            reference = node.get("$ref")
            if not isinstance(reference, str):
                return node
            node = value_at_pointer(self._spec, reference)
        raise LookupError("a reference points to nothing in the document")

    def target(self, node: Any) -> Json:
        """Return the schema that a node is or refers to, or an empty one, which allows everything."""
        try:
            return self._resolve(node)
        except LookupError:
            return {}


class _Conversion(Struct):
    """The conversion of a document's schemas, and of the definitions that they refer to."""

    document: Document
    flag: str
    """Properties with it are left out."""
    names: dict[int, str] = {}
    """Id of a reference's target in the document -> name of its definition."""
    pending: list[tuple[str, Json]] = []
    definitions: Json = {}
    recursive: dict[int, bool] = {}
    """See `inline_references`."""

    def schema(self, node: Json) -> Json:
        """Return a schema of the document as JSON Schema 2020-12, with its definitions."""
        converted = self.convert(node)
        while self.pending:
            name, target = self.pending.pop()
            self.definitions[name] = self.convert(target)
        return inline_references(converted, self.definitions, max_nodes=_MAX_INLINED_NODES, recursive=self.recursive)

    def convert(self, node: Any, hidden: frozenset[str] = frozenset()) -> Any:
        if not is_object(node):
            return False if node is False else {}
        result: Json = {}
        if isinstance(node.get("$ref"), str):
            result = self._reference(node)
        else:
            fields, _ = self.document.fields(node)
            hidden |= {name for name, each in fields.items() if self.document.target(each).get(self.flag) is True}
        kept = {key: value for key, value in without_properties(node, hidden).items() if _is_valid(key, value)}
        parts: list[Any] = kept.pop("allOf", [])
        result |= map_subschemas(kept, self.convert)
        if parts:  # they describe the same object
            result["allOf"] = [self.convert(each, hidden) for each in parts]
        return _replace_nullable(result)

    def _reference(self, node: Json) -> Json:
        target = self.document.target(node)
        if not target:
            return {}
        if id(target) not in self.names:
            name = unused_name(re.sub(r"[^\w.-]+", "_", unquote(node["$ref"]).rpartition("/")[2]), self.definitions)
            self.names[id(target)], self.definitions[name] = name, {}
            self.pending.append((name, target))
        return {"$ref": f"#/$defs/{self.names[id(target)]}"}


def _items(value: Any) -> list[Any]:
    return value if is_array(value) else []


def _is_valid(keyword: str, value: Any) -> bool:
    """Return whether a keyword of a document can be part of a schema for clients."""
    if keyword in _NOT_KEPT or (value == [] and keyword != "required"):
        return False
    if keyword == "discriminator":
        return is_object(value)
    return fits_keyword(keyword, value) or (isinstance(value, bool) and keyword.startswith("exclusive"))


def _replace_nullable(node: Json) -> Json:
    """Return a schema of OpenAPI 3.0 without the keywords that JSON Schema 2020-12 doesn't have."""
    for bound, keyword in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(node.get(keyword), bool) and node.pop(keyword) and bound in node:
            node[keyword] = node.pop(bound)
    if node.pop("nullable", None) is not True or not node:
        return node
    if is_array(node.get("enum")) and None not in node["enum"]:
        node["enum"] = [*node["enum"], None]
    if isinstance(kind := node.get("type"), str):
        node["type"] = [kind, "null"]
    if "$ref" not in node and "allOf" not in node:
        return node
    notes: Json = {key: node.pop(key) for key in ("title", "description", "default") if key in node}
    return {**notes, "anyOf": [node, {"type": "null"}]}


def without_properties(node: Json, hidden: frozenset[str]) -> Json:
    """Return the schema of an object without some of its properties."""
    result = dict(node)
    if is_object(properties := node.get("properties")):
        result["properties"] = {name: each for name, each in properties.items() if name not in hidden}
    if is_array(required := node.get("required")):
        result["required"] = [name for name in required if name not in hidden]
    return result


def _form_of(options: Mapping[str, Any]) -> str:
    """Return the encoding of a parameter or field (OpenAPI 3.1, Style Values); see `Argument.form`."""
    style = options.get("style", "form")
    if _plain(str(options.get("contentType", ""))).endswith("json"):
        return "json"
    if style == "deepObject":
        return "deep"
    return "" if options.get("explode", style == "form") else _SEPARATORS.get(style, ",")


def _plain(media: str) -> str:
    """Return a media type without parameters."""
    return media.partition(";")[0].strip()


def _content_of(holder: Json, other_types: tuple[str, ...]) -> tuple[str, Json]:
    """Return the media type and description of a body, preferring JSON; empty without one."""
    content: Json = holder.get("content") or {}
    for kind, description in content.items():
        plain = _plain(kind)
        if plain == JSON or plain.endswith("+json") or plain in other_types:
            return kind, members(description)
        if plain == "*/*":
            return JSON, members(description)
    return "", {}


_TIMEOUT = 30.0


class RouteKind(Enum):
    """The kind of item that an operation becomes."""

    TOOL = "tools"
    RESOURCE = "resources"
    TEMPLATE = "templates"
    EXCLUDE = ""


class RouteMap(Struct, frozen=True):
    """Maps operations to a kind: ``RouteMap(methods=["GET"], pattern=r"/books/.*", kind=RouteKind.RESOURCE)``."""

    methods: Sequence[str] = ()
    """HTTP methods, in upper case; empty for all."""
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


class ApiRequest(Confidential, Struct, frozen=True):
    """A request to an API."""

    method: str
    target: str
    """Path and query below the base URL."""
    headers: dict[str, str]
    content: bytes | None


def build_request(operation: Operation, arguments: Mapping[str, Any], headers: Mapping[str, str] = {}) -> ApiRequest:
    """Return the request for one operation of an API.

    Args:
        operation: Operation to call.
        arguments: Arguments of its tool.
        headers: Additional headers, which override those of arguments.

    Raises:
        ToolError: An argument is missing or changes the path.
    """
    parts: defaultdict[str, Json] = defaultdict(dict)
    given = {each: value for name, value in arguments.items() if (each := operation.arguments.get(name))}
    for argument, value in given.items():
        if value is not None:
            parts[argument.place] |= _pairs(argument, value, given)
    if parts["cookie"]:
        parts["header"]["cookie"] = "; ".join(f"{name}={quote(value)}" for name, value in parts["cookie"].items())
    fields = {name: each for name, each in parts["header"].items() if name.lower() not in headers} | dict(headers)
    content: bytes | None = None
    body = next(iter(parts["body"].values()), parts["field"] or None)
    if body is not None:
        content, fields["content-type"] = _encode_body(operation.media, body)
    query = _encode_form(parts["query"])
    target = _path(operation, parts["path"]) + (f"?{query}" if query else "")
    return ApiRequest(operation.method, target, fields, content)


async def send_by(client: Any, request: ApiRequest) -> Any:
    """Return the response to a request that an `AsyncClient` of httpx2 or httpx sends.

    Raises:
        ToolError: The API can't be reached.
    """
    try:
        return await client.request(request.method, request.target, headers=request.headers, content=request.content)
    except Exception as error:
        is_http_error = "Error" in type(error).__name__ or "Timeout" in type(error).__name__
        if isinstance(error, ToolError) or not is_http_error:
            raise
        raise ToolError(f"{type(error).__name__}: {error}") from error


def check_response(response: Any) -> Any:
    """Return a response unless it's an error.

    Raises:
        ToolError: It's an error.
    """
    if response.status_code == 429:
        raise ToolError("The API is rate limiting this server. Try again later.")
    if response.status_code >= 400:
        reason = f" {response.reason_phrase}" if response.reason_phrase else ""
        body = shorten(str(_response_value(response)), _MAX_ERROR_TEXT)
        raise ToolError(f"HTTP error {response.status_code}:{reason} - {body}")
    return response


def _encode_body(media: str, body: Any) -> tuple[bytes, str]:
    """Return the body of a request, and its media type."""
    plain = _plain(media)
    if plain == FORM and is_object(body):
        return _encode_form(body).encode(), FORM
    if plain == MULTIPART and is_object(body):
        return _encode_multipart(body)
    return body.encode() if plain == TEXT and isinstance(body, str) else encode(body), media


def _encode_form(fields: Mapping[str, Any]) -> str:
    """Return the fields, encoded as a query or form."""
    pairs = [
        (name, "" if each is None else _as_text(each))
        for name, value in fields.items()
        for each in (value if is_array(value) else (value,))
    ]
    return urlencode(pairs, quote_via=quote)


def _encode_multipart(fields: Mapping[str, Any]) -> tuple[bytes, str]:
    boundary = secrets.token_hex(16)
    parts: list[str] = []
    for name, value in fields.items():
        escaped = name.replace("\\", "\\\\").replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
        for each in value if is_array(value) and value else (value,):  # a body needs at least one part
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{escaped}"'
            parts.append(f"{head}\r\n\r\n{_as_text(each)}\r\n")
    return f"{''.join(parts)}--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else encode(value).decode()


def _pairs(argument: Argument, value: Any, given: Collection[Argument]) -> Json:
    """Return the pairs of one argument in the request with all of the given arguments."""
    name, form = argument.name, argument.form
    if argument.place == "body":
        return {name: value}
    if argument.place not in ("query", "field") or (form == "json" and not isinstance(value, str)):
        return {name: _as_text(value)}
    if is_object(value) and (argument.members is None or argument.members):
        return _expand(argument, value, given)
    if is_array(value) and value and form not in ("", "deep"):
        return {name: form.join(map(_as_text, value))}
    return {name: value}  # a list becomes several pairs


def _expand(argument: Argument, value: Json, given: Collection[Argument]) -> Json:
    """Return the pairs of an object in a query. None of them can be read as another argument of the request."""
    deep = argument.form == "deep"
    others = [each.name for each in given if each.place == "query" and each is not argument]
    plain_names = {_plain_name(each) for each in others}
    pairs: Json = {}
    for key, each in value.items():
        name = f"{argument.name}[{key}]" if deep else key
        taken = name.casefold() in map(str.casefold, others) or "[" in key if deep else _plain_name(key) in plain_names
        if taken or (argument.members is not None and key not in argument.members):
            raise ToolError(f"{argument.name} can't contain {key[:_MAX_NAME]!r}. Remove it.")
        pairs[name] = each
    if deep or not argument.form:
        return pairs
    return {argument.name: argument.form.join(_as_text(each) for pair in pairs.items() for each in pair)}


def _plain_name(name: str) -> str:
    """Return the name that lenient frameworks read: without brackets, and regardless of case, dots, and spaces."""
    return re.sub(r"\W", "_", name.partition("[")[0].strip().casefold())


def _path(operation: Operation, values: Mapping[str, Any]) -> str:
    def part(found: re.Match[str]) -> str:
        if found[1] not in values:
            raise ToolError(f"Missing required path parameters: {found[1]!r}")
        value = str(values[found[1]])
        if not value or has_dot_segment(value):
            raise ToolError(f"{found[1]} can't be {value[:_MAX_NAME]!r}: that would change the path.")
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

    def __init__(self, name: str, operation: Operation, client: Any) -> None:
        read = partial(read_arguments, name, operation.input_schema)
        source = ItemSource(name, partial(_run, client, operation), read, schema=operation.input_schema)
        super().__init__(source, tags=operation.tags)
        self._described = {**self._described, **operation.describe(name)}


def read_arguments(tool: str, schema: Json, raw: Any) -> Json:
    """Decode arguments, and compare them with the schema.

    The patterns of a document aren't tried, because they could take any time. The API decides.

    Raises:
        ArgumentError: The arguments are invalid.
    """
    try:
        arguments = decode_object(raw)
        present = {each: value for each, value in arguments.items() if value is not None}
        problems = describe_problems(schema, present)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise ArgumentError(f"The arguments must be an object ({exc}).") from exc
    if problems:
        raise ArgumentError(f"Invalid arguments for tool {tool!r}: {problems}")
    return arguments


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


def _resource(operation: Operation, name: str, client: Any) -> Resource | Template:
    """Return an operation as a resource, or as a template if its path has variables."""
    variables = sorted(each for each, argument in operation.arguments.items() if argument.place == "path")

    async def run(values: Any, call: Call) -> Any:
        try:
            response = await _call(client, operation, values or {})
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


def register(
    add: Callable[[str, str, Any], object],
    spec: Any,
    client: Any = None,
    *,
    routes: Sequence[RouteMap] = (),
    names: Mapping[str, str] | None = None,
    choose: Callable[[Operation, RouteKind], RouteKind | None] | None = None,
) -> None:
    """Register the operations of an OpenAPI document.

    Args:
        add: Adds an item of a kind and name to the server.
        spec: The document, version 3.0 or 3.1, as a dict.
        client: An `AsyncClient` of httpx2 or httpx; by default one for the first server of the document.
        routes: What the operations become. The first match wins; without a match, an operation becomes a tool.
        names: Names of tools and resources by `operationId`.
        choose: Called with each operation and its kind; returns another kind, or None to keep it.

    Raises:
        ValueError: The document is invalid, or has no server and `client` isn't given.
        ImportError: `client` isn't given, and neither httpx2 nor httpx is installed.
    """
    document = Document(spec)
    if client is None:
        url = document.url
        if not url.startswith(("http://", "https://")):
            raise ValueError(
                f"The document has no absolute server URL ({url!r}): pass client=httpx2.AsyncClient(base_url=…)"
            )
        client = _http().AsyncClient(base_url=url, timeout=_TIMEOUT)
    used_names: set[str] = set()
    for operation in document.operations():
        kind = next((each for each in routes if each.matches(operation)), RouteMap()).kind
        if choose is not None:
            kind = choose(operation, kind) or kind
        if kind is RouteKind.EXCLUDE:
            continue
        name = unused_name(operation.name(names or {}), used_names)
        used_names.add(name)
        if kind is RouteKind.TOOL:
            check_tool_name(name)
            add("tools", name, OperationTool(name, operation, client))
        else:
            item = _resource(operation, name, client)
            add("templates" if isinstance(item, Template) else "resources", item.name, item)
    document.log_skipped(document.title)


async def _call(client: Any, operation: Operation, arguments: Mapping[str, Any]) -> Any:
    return check_response(await send_by(client, build_request(operation, arguments)))


async def _run(client: Any, operation: Operation, arguments: Any, call: Call) -> ToolResult:
    return result_of(operation, await _call(client, operation, arguments))


def _http() -> Any:
    for name in ("httpx2", "httpx"):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise ImportError("from_openapi and from_fastapi require an HTTP client: pip install httpx2")


LOCAL_URL = "http://localhost"
"""Base URL of an application in this process."""


def client_of_app(app: Any) -> Any:
    """Return an HTTP client for an ASGI application in this process."""
    http = _http()
    return http.AsyncClient(transport=http.ASGITransport(app=app), base_url=LOCAL_URL)


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


def check_api(config: Any) -> None:
    """Check that an `UpstreamConfig` with an API is valid.

    Raises:
        ValueError: The configuration is invalid; the message says why.
    """
    if config.target is not None:
        raise ValueError(f"upstream {config.name!r}: pass either a target or openapi=, not both.")
    document = config.openapi.document if isinstance(config.openapi, OpenApi) else config.openapi
    if is_application(document):
        if config.auth is not None or config.headers:
            raise ValueError(
                f"upstream {config.name!r}: an application in this process doesn't support auth and "
                "headers. Remove them."
            )
    elif not isinstance(document, str | Path | dict):
        raise ValueError(
            f"upstream {config.name!r}: openapi= takes the URL or file of a document, the document as a dict, or a "
            "FastAPI application."
        )


def is_application(document: Any) -> bool:
    """Return whether a document is an application that generates one, such as FastAPI's."""
    return callable(getattr(document, "openapi", None))
