"""Tools and resources from an OpenAPI document. Each one calls an operation of an API.

Used by `Server.from_openapi`, `Server.from_fastapi`, and the gateway's APIs. Schemas keep their shape, and references
to the document's components become references to ``$defs``.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, partial
from itertools import chain, islice
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct, structs

from millstream._gateway.apis.files import COLLECTIONS, DocumentFiles, upgrade, upgrade_schema
from millstream._gateway.apis.request import (
    BINARY,
    BODIES,
    DEEP,
    FILE_NAME,
    FORM,
    IN_BODY,
    JSON,
    MULTIPART,
    Argument,
    RequestTemplate,
    count_names,
    has_dot_segment,
    is_media_type,
    items_of,
    kind_of_body,
    path_variables,
    plain_media,
)
from millstream._gateway.catalog.catalog import MAX_ITEM_BYTES
from millstream._gateway.names import ascii_name, unused_name
from millstream._gateway.options.api import check_hosts
from millstream._protocol.json_schema import inline_references, is_integral, map_subschemas, value_at_pointer
from millstream._protocol.schema_repair import KEYWORDS, fits_keyword
from millstream._protocol.uri import join_url, split_url
from millstream.protocol import (
    Json,
    encode,
    is_array,
    is_object,
    members,
)

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace", "query")
_COMPONENT = "#/components/schemas/"
_IN_HEADER = "header", "cookie"
_PLACES = "path", "query", *_IN_HEADER, *IN_BODY
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_COOKIE = "cookie", "header"
_MAX_INLINED_NODES = 10_000
"""Maximum nodes of a schema with inlined definitions."""
_MAX_NESTING = 100
"""Maximum nesting depth of schemas."""

_MAX_PARTS = 50
"""Maximum number of an object's parts and variants to search for properties that are never sent, and for files."""
_MAX_STEPS = 2_000_000
"""Maximum schemas to look at for all operations together, because many operations can refer to the same large schemas.
Real documents of 6 MB need 200,000.
"""
_NAME_BYTES = 64
_RESERVED_HEADERS = frozenset((name, "header") for name in (
    "accept", "content-type", "authorization", "host", "content-length", "transfer-encoding", "connection", "te",
    "trailer", "upgrade", "expect", "keep-alive", "proxy-authorization", "proxy-connection", "cookie",
))  # fmt: skip
"""Headers that arguments can't set. OpenAPI ignores the first three, and the others belong to the connection."""
_NOT_KEPT = frozenset((
    "definitions", "discriminator", "example", "externalDocs", "nullable", "xml",
))  # fmt: skip
"""Keywords whose meaning would change, or be lost, when a definition is moved."""
_OF_OBJECTS = "properties", "required", "allOf"
ANY_SCALAR: Any = int | float | bool
_SCALARS: Mapping[str, Any] = {"integer": int, "number": float, "boolean": bool}
MAX_LOGGED = 20
"""Maximum skipped operations to log as warnings."""
_MAX_LOGGED_TEXT = 300
"""Maximum characters of a route and of a reason."""
logger = logging.getLogger("millstream.gateway")


class Operation(RequestTemplate, frozen=True, kw_only=True):
    """One operation of an API."""

    operation_id: str
    """Id, or empty if the document has none."""
    summary: str
    """Summary, or empty."""
    description: str
    """Description for a model."""
    tags: list[str]
    input_schema: Json
    short_id: str
    """The part of the id before ``__``, if no other operation has it."""

    def name(self, names: Mapping[str, str]) -> str:
        """Return the name of the tool or resource."""
        texts = (
            names.get(self.operation_id, ""),
            self.short_id,
            self.operation_id,
            self.summary,
            f"{self.method}_{self.path}",
        )
        return next((name for name in map(_plain_name, texts) if name), self.method)

    def describe(self, name: str) -> Json:
        """Return the description of its tool."""
        output = {} if self.output_schema is None else {"outputSchema": self.output_schema}
        return {"name": name, "description": self.description, "inputSchema": self.input_schema, **output}

    @property
    def hints(self) -> Json:
        """Annotations of its tool, by its method (RFC 9110 §9.2). Whether the API keeps to them isn't known."""
        if self.method in ("GET", "HEAD", "OPTIONS", "TRACE"):
            return {"readOnlyHint": True}
        is_idempotent = self.method in ("PUT", "DELETE")
        destroys = {"destructiveHint": True} if self.method == "DELETE" else {}
        return {"readOnlyHint": False, "idempotentHint": is_idempotent, **destroys}


def _plain_name(text: str) -> str:
    """Convert text to an ASCII name, or to an empty string if nothing is left."""
    plain = ascii_name(text, "A-Za-z0-9")
    return f"_{plain}" if plain[:1].isdigit() else plain  # Gemini's API rejects names that begin with a digit


class _NotOffered(Exception):
    """An operation can't be offered."""


class Document:
    """An OpenAPI document of version 2.0, 3.0, or 3.1.

    Args:
        spec: The document, as a dict or with its files.
        hosts: Origins of other servers that operations may have.
        output_schemas: Whether tools have output schemas, taken from the document's responses.
        fixed: Parameters that arguments can't set. See `parameter_key`.

    Raises:
        ValueError: It isn't an OpenAPI document of these versions.
    """

    def __init__(
        self, spec: Any, *, hosts: Collection[str] = (), output_schemas: bool = False,
        fixed: Collection[tuple[str, str]] = (),
    ) -> None:  # fmt: skip
        refused: Mapping[str, str] = {}
        if isinstance(spec, DocumentFiles):
            spec, refused = spec.document, spec.refused
        if not is_object(spec):
            raise ValueError("The OpenAPI document must be an object with members such as openapi and paths.")
        if not is_object(spec.get("paths")):
            raise ValueError("The OpenAPI document has no paths. Check that the file is one.")
        if str(spec.get("swagger", "")).startswith("2"):
            spec = upgrade(spec)
        if not str(spec.get("openapi", "")).startswith("3."):
            raise ValueError("The OpenAPI document must be version 2.0, 3.0, or 3.1.")
        self._spec: Json = spec
        self._steps = 0
        """Schemas looked at."""
        self.base = ""
        """Base URL of the API, if it isn't the first server."""
        check_hosts(hosts)
        self._hosts = {origin_of(each) for each in hosts}
        self._output_schemas = output_schemas
        self._has_cookies = _COOKIE not in fixed
        schemes = map(self.target, members(members(spec.get("components")).get("securitySchemes")).values())
        secrets = (parameter_key(str(each.get("name")), str(each.get("in"))) for each in schemes)
        self._fixed = _RESERVED_HEADERS.union(fixed, secrets)
        """Parameters that arguments can't set."""
        ids = (members(each).get("operationId") for item in spec["paths"].values() for each in members(item).values())
        self._short_ids = Counter(each.split("__")[0] for each in ids if isinstance(each, str))
        self._request = _Conversion(self, "readOnly", _NOT_KEPT)
        self._response = _Conversion(self, "writeOnly", _NOT_KEPT | {"pattern", "format"})
        self._members: dict[int, tuple[Json, frozenset[str] | None]] = {}
        """Id of a schema -> the schema, and the properties that it declares. See `_query_members`."""
        self._fields: dict[tuple[int, bool], tuple[Json, Json, Collection[str], list[str], Any]] = {}
        """Id of a body's schema -> the schema, and its fields. See `_fields_of`."""
        self._members_left = 0
        """How many more properties the query parameters of the current operation can declare."""
        self.skipped: dict[str, str] = {}
        """Method and path of each operation that isn't offered, and the reason. The same for references to files."""
        for address, reason in refused.items():
            self.skip("the reference to", address, reason)

    @cached_property
    def url(self) -> str:
        """URL of the API, or empty if the document has none. Some documents have one for each path instead."""
        if urls := _servers_of(self._spec):
            return urls[0]
        items = map(members, self._spec["paths"].values())
        own = [_servers_of(item[each]) or _servers_of(item) for item in items for each in _METHODS if each in item]
        return own[0][0] if all(own) and own else ""

    def operations(self) -> Iterator[Operation]:
        """Yield the operations. One that can't be read is added to `skipped`.

        Each schema contains copies of the definitions that it refers to, so a small document can have huge ones. An
        operation whose schemas are too large has no output schema.

        Raises:
            ValueError: The operations need too many schemas together.
        """
        for path, item in self._spec["paths"].items():
            for method in members(members(item).get("additionalOperations")):
                self.skip(method, path, "additionalOperations aren't supported")
            for method in map(str.upper, _METHODS if is_object(item) else ()):
                if self._steps > _MAX_STEPS:
                    raise ValueError(f"The document's operations have more than {_MAX_STEPS:,} schemas together.")
                try:
                    shared = item | self._resolve(item)  # there may be operations beside a reference
                    if is_object(operation := shared.get(method.lower())):
                        found = self._operation(path, method, shared, self._resolve(operation))
                        is_large = (
                            found.output_schema and len(encode(found.describe(""))) > MAX_ITEM_BYTES - _NAME_BYTES
                        )
                        yield structs.replace(found, output_schema=None) if is_large else found
                except _NotOffered as exc:
                    self.skip(method, path, str(exc))
                except RecursionError:  # the interpreter may allow even less
                    self.skip(method, path, f"its schemas are nested more than {_MAX_NESTING} levels deep")
                except (LookupError, TypeError, AttributeError, ValueError) as exc:
                    self.skip(method, path, f"it's malformed: {type(exc).__name__} ({exc})")

    def skip(self, method: str, path: str, reason: str) -> None:
        """Record that an operation isn't offered, or a reference isn't followed."""
        self.skipped[f"{method} {path}"[:_MAX_LOGGED_TEXT]] = reason[:_MAX_LOGGED_TEXT]

    def log_skipped(self, name: str = "") -> None:
        """Log the operations that aren't offered."""
        name = name or str(members(self._spec.get("info")).get("title") or "API")
        for number, (route, reason) in enumerate(self.skipped.items()):
            level = logging.WARNING if number < MAX_LOGGED else logging.DEBUG
            logger.log(level, "%s: skipped %s, because %s", name, route, reason)
        if len(self.skipped) > MAX_LOGGED:
            logger.warning("%s: skipped %d more", name, len(self.skipped) - MAX_LOGGED)

    def _operation(self, path: str, method: str, shared: Json, operation: Json) -> Operation:
        if has_dot_segment(path):
            raise _NotOffered("its path isn't below the API's base URL")
        parameters = [
            self._resolve(each) for holder in (operation, shared) for each in items_of(holder.get("parameters"))
        ]
        self._members_left = _MAX_INLINED_NODES
        fields, template = self._body(operation, parameters)
        parameters = [each for each in parameters if each.get("in") not in ("body", "formData")]  # for version 2.0
        unsent = template.pop("unsent", ())
        arguments, schema = self._arguments(path_variables(path), parameters, fields, unsent, template)
        if (others := template.pop("others", False)) is not False:
            schema["additionalProperties"] = others
        output, wrapped = self._output(operation)
        keys = "operationId", "summary", "description"
        operation_id, summary, description = (
            text if isinstance(text := operation.get(key), str) else "" for key in keys
        )
        description, short_id = description or summary, operation_id.split("__")[0]
        if operation.get("deprecated") is True:
            description = f"Deprecated. {description}".rstrip()
        description = description or f"Executes {method} {path}"
        return Operation(
            path=path, method=method, operation_id=operation_id, summary=summary, description=description,
            tags=[each for each in items_of(operation.get("tags")) if isinstance(each, str)],
            arguments=arguments,
            input_schema=self._request.schema(schema), output_schema=output, wrapped=wrapped,
            short_id=short_id if self._short_ids[short_id] == 1 else "", server=self._server(operation, shared),
            takes_members=others is not False, **template,
        )  # fmt: skip

    def _arguments(
        self, variables: list[str], parameters: list[Json], fields: list[Json], unsent: Collection[str], template: Json
    ) -> tuple[dict[str, Argument], Json]:
        """Return the arguments for the parameters and the parts of the body, and the schema of an object with them."""
        arguments: dict[str, Argument] = {}
        properties: Json = {}
        required: list[str] = []
        unusable = set[tuple[str, str]]()
        taken = {each["name"] for each in fields}
        undeclared = ({"name": each, "in": "path", "schema": {"type": "string"}} for each in variables)
        for parameter in (*parameters, *undeclared, *fields):
            own_name, place = parameter.get("name"), parameter.get("in")
            if not isinstance(own_name, str) or place not in _PLACES or parameter.get("style") == "cookie":
                raise _NotOffered(f"a parameter has no name, or its place or style isn't supported ({place})")
            key = parameter_key(own_name, place)
            is_undeclared = place == "path" and own_name not in variables
            is_invalid = place in _IN_HEADER and _HEADER.fullmatch(own_name) is None
            if (
                is_undeclared
                or is_invalid
                or key in unusable
                or key in self._fixed
                or (place == "cookie" and not self._has_cookies)
            ):
                continue
            unusable.add(key)
            name, described = own_name, Json()
            if place not in IN_BODY:
                notes = str(parameter.get("description") or "")
                if name in taken or name in unsent:
                    name = unused_name(f"{name}__{place}", taken)
                    notes = f"{notes} ({place.capitalize()} parameter)".strip()
                described = {"description": notes} if notes else {}
            taken.add(name)
            argument, schema = self._argument(own_name, place, parameter, template)
            if argument.is_binary and place == "field":
                file_name = {"type": "string", "description": f"File name for {own_name}"}
                properties[own_name + FILE_NAME] = {**schema, "items": file_name} if "items" in schema else file_name
            arguments[name], properties[name] = argument, schema | described
            if parameter.get("required") or place == "path":
                required.append(name)
        names = count_names(arguments.values())
        for name, each in arguments.items():
            if each.members != frozenset():
                arguments[name] = structs.replace(each, taken=names[each.place, each.style == DEEP])
        return arguments, {"type": "object", "properties": properties, "required": required}

    def _argument(self, name: str, place: str, parameter: Json, template: Json) -> tuple[Argument, Json]:
        """Return the argument for a parameter or a part of the body, and its schema."""
        kind = template["kind"] if place in IN_BODY else ""
        # Version 3 describes a value by `content` or `schema`, and version 2 by members of the parameter itself.
        media, content = next(iter(members(parameter.get("content")).items()), ("", Json()))
        media = ",".join(filter(is_media_type, str(parameter.get("contentType") or media).split(",")))
        schema = members(self.target(content).get("schema") or parameter.get("schema") or upgrade_schema(parameter))
        target = self.target(schema)
        inner = target.get("additionalProperties") if place == "body" else schema
        is_binary = kind == "bytes" or (kind == "multipart" and self._is_file(inner, media))
        is_plain = is_binary or parameter.keys().isdisjoint(("style", "explode", "allowReserved", "items"))
        found = frozenset[str]() if is_plain and place != "body" else None
        # Models write only JSON, so files are base64 text, and the description says which bytes they stand for.
        if is_binary or kind == "text":
            about, default = ("", "The file") if place == "field" else (plain_media(template["media"]), "The body")
            about = ", ".join(filter(None, (about, "base64" if is_binary else "")))
            schema = {"type": "string", "description": f"{target.get('description') or default} ({about})"}
            if is_binary:
                schema["contentEncoding"] = "base64"
            if place == "field" and target.get("type") == "array":
                schema = {"type": "array", "items": schema}
            elif kind == "multipart" and place == "body":
                schema = {"type": "object", "additionalProperties": schema}
        if parameter.get("deprecated") is True:
            schema = {**schema, "deprecated": True}
        return Argument(
            name, place, *_style_of(parameter, place), self._query_members(schema) if place == "query" else found,
            media=media if is_binary or "*" not in media else "", is_binary=is_binary,
            allows_reserved=parameter.get("allowReserved") is True,
        ), schema  # fmt: skip

    def _is_file(self, schema: Any, media: str = "") -> bool:
        """Return whether a value is a file, or several: by its schema, or by its media type if it's text."""
        target = self.target(schema)
        is_text = self.target(target.get("items", target)).get("type") in (None, "string")
        return (is_text and media != "" and kind_of_body(media.partition(",")[0]) == "bytes") or any(
            node.get("format") == "binary"
            or ("contentEncoding" not in node and kind_of_body(str(node.get("contentMediaType", JSON))) == "bytes")
            for node in islice(self.parts_of(schema, set(), "allOf", "anyOf", "oneOf", "items"), _MAX_PARTS)
        )

    def _server(self, operation: Json, shared: Json) -> str:
        """Return the URL of an operation's server.

        Raises:
            _NotOffered: The server isn't below the base URL, and would receive the credentials.
        """
        # Requests carry the operator's credentials, so a document may only choose among addresses that the operator
        # named: below the base URL, or on one of the hosts. The base URL replaces that of the document's first server.
        base, usual = self._bases
        servers = _servers_of(operation) or _servers_of(shared)
        for own in (join_url(f"{base}/", each) for each in servers):
            origin, path = origin_of(own), urlsplit(own).path.rstrip("/")
            if has_dot_segment(path):  # it could leave the base path
                continue
            is_here = origin in ("", origin_of(self.url), origin_of(self.base))
            if is_here and origin in ("", origin_of(base)) and _is_below(path, base):
                return usual + path.removeprefix(urlsplit(base).path)
            if is_here and _is_below(path, usual):
                return origin_of(usual) + path
            if origin in self._hosts:
                return origin + path
        if servers:
            raise _NotOffered(
                f"it has its own server, {servers[0]}, which isn't below the base URL. To use it, add its origin to "
                "hosts. Your credentials are then sent there"
            )
        return usual

    @cached_property
    def _bases(self) -> tuple[str, str]:
        """The document's first server, and the base URL of all requests."""
        url = next(iter(_servers_of(self._spec)), self.base) or self.url
        usual = (self.base or self.url).partition("?")[0].rstrip("/")
        return re.sub("^//", "https://", url).rstrip("/"), usual

    def _body(self, operation: Json, parameters: list[Json]) -> tuple[list[Json], Json]:
        """Return each part of the body that's an argument, described like a parameter, and the template's members."""
        consumes = items_of(operation["consumes"]) if "consumes" in operation else self._consumes
        if fields := [{**each, "in": "field"} for each in parameters if each.get("in") == "formData"]:  # version 2.0
            has_file = any(each.get("type") == "file" for each in fields)
            media = MULTIPART if has_file or (MULTIPART in consumes and FORM not in consumes) else FORM
            needs_body = any(each.get("required") for each in fields)
            return fields, {"media": media, "kind": kind_of_body(media), "needs_body": needs_body}
        body = self._resolve(operation.get("requestBody") or {})
        for each in parameters:
            if each.get("in") == "body":
                body = {**each, "content": dict.fromkeys(consumes or [JSON], each)}
        media, content = self._content_of(body)
        if not media:
            return [], {}
        schema, is_required = members(content.get("schema")), body.get("required") is True
        if media == "*/*" and self._is_file(schema):
            media = BINARY
        kind = kind_of_body(media)
        template, described = {"media": media, "kind": kind}, Json() if kind in ("text", "bytes") else schema
        found, unsent, required, others = self._fields_of(described, kind == "multipart")
        if not (found or unsent):
            name = re.sub(r"\W+", "_", str(self.target(described).get("title", ""))).lower() or "body"
            return [{"name": name, "in": "body", "schema": schema, "required": is_required}], template
        encodings, needed = members(content.get("encoding")), required if is_required else []
        fields = [
            {**members(encodings.get(name)), "name": name, "in": "field", "schema": each, "required": name in needed}
            for name, each in found.items()
        ]
        return fields, {**template, "needs_body": is_required, "others": others, "unsent": unsent}

    def _fields_of(self, schema: Json, has_fields: bool) -> tuple[Json, Collection[str], list[str], Any]:
        """Return the fields of a body that are sent, the names of fields that aren't, and of required ones, and the
        schema of other fields, or False.
        """
        target = self.target(schema)
        key = id(target), has_fields
        if key not in self._fields:
            fields, required = self.fields(target, has_fields)
            unsent = self._request.hidden_properties({"properties": fields})
            sent = {name: each for name, each in fields.items() if name not in unsent}
            own = [node for is_own, node in self.parts(target) if is_own]
            allowed = [node.get("additionalProperties", "patternProperties" in node or None) for node in own]
            others = next((each for each in allowed if each is not None and False not in allowed), False)
            self._fields[key] = target, sent, unsent, required, others
        return self._fields[key][1:]

    @cached_property
    def _consumes(self) -> list[Any]:
        """Media types of bodies in version 2.0: the preferred ones of the document, which its operations share."""
        media = [each for each in items_of(self._spec.get("consumes")) if isinstance(each, str)]
        first = {kind_of_body(each): each for each in reversed(media)}
        return [*first.values(), *{MULTIPART, FORM}.intersection(media)]

    def _content_of(self, holder: Json) -> tuple[str, Json]:
        """Return the media type and description of the body's preferred kind, or empty values."""
        content = {
            media if is_media_type(media) else BINARY: each for media, each in members(holder.get("content")).items()
        }
        media = min(content, key=lambda each: list(BODIES).index(kind_of_body(each)), default="")
        return media, self.target(content.get(media))

    def parts_of(self, schema: Any, seen: set[int], *keywords: str) -> Iterator[Json]:
        """Yield a schema, and the schemas in some of its keywords, except schemas in `seen`."""
        pending = [schema]
        while pending:
            node = self.target(pending.pop())
            if id(node) not in seen:
                seen.add(id(node))
                yield node
                for value in filter(None, map(node.get, keywords)):
                    pending += value if is_array(value) else [value]

    def parts(self, schema: Json, has_fields: bool = False) -> Iterator[tuple[bool, Json]]:
        """Yield the schemas that describe an object: its own parts (with True), then the parts of its variants.

        Without fields of its own, it's a union, and its variants are left out unless `has_fields`.
        """
        seen = set[int]()
        variants: list[Iterable[Any]] = [[schema]]
        for number, variant in enumerate(chain.from_iterable(variants)):
            nodes: list[Json] = []
            for node in self.parts_of(variant, seen, "allOf"):
                has_fields = has_fields or bool(members(node.get("properties")))
                nodes.append(node)
                yield number == 0, node
            if has_fields:
                variants += map(_variants, nodes)

    def fields(self, schema: Json, has_fields: bool) -> tuple[Json, list[str]]:
        """Return the properties of an object with its parts and variants, and the names of required ones."""
        parts = list(self.parts(schema, has_fields))
        fields: Json = {}
        for _, node in reversed(parts):
            fields |= members(node.get("properties"))
        required = [name for is_own, node in reversed(parts) if is_own for name in items_of(node.get("required"))]
        tags = [members(node.get("discriminator")).get("propertyName") for _, node in parts]
        names = (*required, *(each for each in tags if each in fields))
        return fields, list(dict.fromkeys(each for each in names if isinstance(each, str)))

    def _query_members(self, schema: Json) -> frozenset[str] | None:
        """Return the properties that a schema declares in any of its variants, or None if an object can have any.

        Parameters with the same schema share the set.

        Raises:
            _NotOffered: The query parameters of an operation declare too many.
        """
        schema = self.target(schema)
        if (known := self._members.get(id(schema))) is not None:
            return known[1]
        names: set[str] = set()
        for _, node in self.parts(schema, has_fields=True):
            properties = members(node.get("properties"))
            if node.get("additionalProperties", not properties and node.get("type") == "object") is not False:
                self._members[id(schema)] = schema, None
                return None
            names |= properties.keys()
            self._members_left -= 1 + len(properties)
            if self._members_left < 0:
                raise _NotOffered(f"its query parameters have more than {_MAX_INLINED_NODES:,} properties")
        self._members[id(schema)] = schema, frozenset(names)
        return self._members[id(schema)][1]

    def _output(self, operation: Json) -> tuple[Json | None, bool]:
        responses = members(operation.get("responses")).items()
        found = [self.target(each) for code, each in responses if str(code).startswith("2")]
        response = found[0] if self._output_schemas and len(found) == 1 else Json()
        media, content = self._content_of(response)
        schema = members(
            (content if kind_of_body(media) == "json" else response).get("schema")
        )  # as version 2.0 has it
        resolved = self.target(schema)
        if not resolved.keys() - {"title", "description"}:
            return None, False
        wrapped = resolved.get("type") != "object" and "properties" not in resolved
        whole = {"properties": {"result": schema}, "required": ["result"]} if wrapped else resolved
        return self._response.schema({**whole, "type": "object"}), wrapped

    def _resolve(self, node: Any) -> Json:
        """Return the target of a reference, or the node itself if it isn't one.

        Raises:
            LookupError: The reference leaves the document, or its target doesn't exist.
        """
        self._steps += 1
        for _ in range(20):
            if not is_object(node):
                break
            reference = node.get("$ref")
            if not isinstance(reference, str):
                return node
            node = value_at_pointer(self._spec, reference)
        raise LookupError("a reference doesn't point to anything in the document")

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
    """Properties with this flag are left out: ``readOnly`` in requests, ``writeOnly`` in responses."""
    dropped: frozenset[str]
    """Keywords to leave out. Clients that compile output schemas reject the whole list because of one unreadable
    keyword."""
    names: dict[tuple[int, bool], str] = {}
    """Id of a reference's target in the document, and whether it's converted without subtypes -> name of its
    definition.
    """
    pending: list[tuple[str, Json, bool]] = []
    definitions: Json = {}
    recursive: dict[int, bool] = {}
    """See `inline_references`."""
    hidden: dict[int, tuple[Json, frozenset[str]]] = {}
    """Id of a part of an object -> the part, and its own properties that aren't sent."""

    def schema(self, node: Json) -> Json:
        """Return a schema of the document as JSON Schema 2020-12, with its definitions."""
        converted = self.convert(node)
        while self.pending:
            name, target, is_part = self.pending.pop()
            self.definitions[name] = self.convert(target, is_part=is_part)
        return inline_references(converted, self.definitions, max_nodes=_MAX_INLINED_NODES, recursive=self.recursive)

    def convert(
        self, node: Any, depth: int = 0, hidden: Collection[str] | None = None, *, is_part: bool = False
    ) -> Any:
        """Return a schema without the properties that aren't sent. A part of an object gets them from the object.

        Args:
            node: Schema of the document.
            depth: Number of schemas around it.
            hidden: Properties that aren't sent, if they're known.
            is_part: Whether it's a part of another object, so that its subtypes don't matter.

        Raises:
            RecursionError: The schema is nested too deeply.
        """
        if not is_object(node):
            return False if node is False else {}
        if depth >= _MAX_NESTING:
            raise RecursionError
        inside = partial(self.convert, depth=depth + 1)
        if hidden is None:
            hidden = {} if node.keys().isdisjoint(_OF_OBJECTS) else self.hidden_properties(node)
        shown = self._shown_members(node, hidden, is_part=is_part)
        kept = {key: value for key, value in shown.items() if key not in self.dropped and _is_valid(key, value)}
        inner: list[Any] = kept.pop("allOf", [])
        result = self._reference(node, is_part=is_part) | map_subschemas(kept, inside)
        discriminator = members(node.get("discriminator"))
        if isinstance(tag := discriminator.get("propertyName"), str):
            require_tag = partial(_require_tag, tag, _tags_by_name(members(discriminator.get("mapping"))))
            for keyword in {"oneOf", "anyOf"} & kept.keys():
                result[keyword] = list(map(require_tag, kept[keyword], result[keyword]))
        if inner:  # all parts describe the same object
            result["allOf"] = [inside(each, hidden=hidden, is_part=True) for each in inner]
        for keyword in {"const", "default", "enum"} & result.keys():
            result[keyword] = _convert(result[keyword], result.get("type"))
        return _modernize(result, is_nullable=True in (node.get("nullable"), node.get("x-nullable")))

    def _shown_members(self, node: Json, hidden: Collection[str], *, is_part: bool) -> Json:
        """Return the members of a schema, with the properties that are sent."""
        shown = dict(node)
        if not is_part and _has_subtypes(node):  # as at the root, where subtypes add their properties
            shown["properties"] = self.document.fields(node, has_fields=True)[0]
        if properties := members(shown.get("properties")):
            shown["properties"] = {  # not booleans, because some clients accept only objects
                name: {"not": {}} if each is False else each for name, each in properties.items() if name not in hidden
            }
        if required := items_of(node.get("required")):
            shown["required"] = list(dict.fromkeys(name for name in required if name not in hidden))
        return shown

    def hidden_properties(self, node: Json) -> Collection[str]:
        """Return the properties of an object that aren't sent. The first part that has a property decides."""
        parts = [part for _, part in islice(self.document.parts(node), _MAX_PARTS)]
        own = [self._hidden_in(part) for part in parts]
        hidden, decided = set[str](), set[str]()
        for part, names in zip(parts, own, strict=True) if any(own) else ():
            hidden |= names - decided
            decided |= members(part.get("properties")).keys()
        return hidden

    def _hidden_in(self, part: Json) -> frozenset[str]:
        if id(part) not in self.hidden:
            nodes = {
                name: chain((members(each),), islice(self.document.parts_of(each, set(), "allOf"), _MAX_PARTS))
                for name, each in members(part.get("properties")).items()
            }
            found = (name for name, each in nodes.items() if any(node.get(self.flag) is True for node in each))
            self.hidden[id(part)] = part, frozenset(found)
        return self.hidden[id(part)][1]

    def _reference(self, node: Json, *, is_part: bool) -> Json:
        target = self.document.target(node)
        if target is node or not target:
            return {}
        key = id(target), is_part and _has_subtypes(target)
        if key not in self.names:
            name = unused_name(
                re.sub(r"[^\w.-]+", "_", unquote(node["$ref"]).replace("~1", "/").rpartition("/")[2]), self.definitions
            )
            self.names[key], self.definitions[name] = name, {}
            self.pending.append((name, target, key[1]))
        return {"$ref": f"#/$defs/{self.names[key]}"}


def _tags_by_name(mapping: Json) -> Mapping[str, list[str]]:
    """Return the tags of each definition in the mapping of a discriminator."""
    tags: dict[str, list[str]] = defaultdict(list)
    for tag, each in mapping.items():
        tags[str(each).rpartition("/")[2]].append(tag)
    return tags


def _require_tag(tag: str, tags: Mapping[str, list[str]], alternative: Any, converted: Any) -> Any:
    """Return an alternative of a union that requires its tag.

    The `discriminator` itself isn't kept, because its mapping leads into the document.
    """
    values = tags.get(str(members(alternative).get("$ref", "")).rpartition("/")[2])
    properties = {"properties": {tag: {"enum": values}}} if values else {}
    return {"allOf": [converted], "required": [tag], **properties}


def _is_valid(keyword: str, value: Any) -> bool:
    """Return whether a keyword of a document can be part of a schema for clients."""
    if keyword.startswith("$") or keyword not in KEYWORDS or (value == [] and keyword != "required"):
        return False  # a reference may lead to a file that isn't a schema
    return fits_keyword(keyword, value) or (isinstance(value, bool) and keyword.startswith("exclusive"))


def _has_subtypes(node: Json) -> bool:
    """Return whether an object names its subtypes in the mapping of its discriminator only."""
    return bool(members(members(node.get("discriminator")).get("mapping"))) and not node.keys() & {"oneOf", "anyOf"}


def _variants(node: Json) -> Iterator[Any]:
    """Yield the alternative schemas that describe an object further."""
    for each in map(str, members(members(node.get("discriminator")).get("mapping")).values()):
        yield {"$ref": each if each.startswith("#/") else _COMPONENT + each}
    for keyword in ("anyOf", "oneOf"):
        yield from items_of(node.get(keyword))


def _convert(value: Any, kind: object) -> Any:
    """Convert a value, or each value in a list, to a type if possible. YAML doesn't read ``on`` and ``1`` as text."""
    if is_array(value):
        return [_convert(each, kind) for each in value]
    if kind == "string" and isinstance(value, bool | int | float):
        return encode(value).decode()
    return is_integral(scalar_of(value, _SCALARS.get(str(kind), Any)))


def scalar_of(value: Any, kind: Any) -> Any:
    """Convert text to a number or boolean if possible, else return the value unchanged."""
    with suppress(msgspec.ValidationError):
        return msgspec.convert(value, kind, strict=False) if isinstance(value, str) else value
    return value


def _modernize(node: Json, *, is_nullable: bool) -> Json:
    """Return a schema of OpenAPI 3.0 without the keywords that JSON Schema 2020-12 doesn't have."""
    for bound, keyword in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(node.get(keyword), bool) and node.pop(keyword) and bound in node:
            node[keyword] = node.pop(bound)
    if not is_nullable or not node:
        return node
    notes: Json = {key: node.pop(key) for key in ("title", "description", "default") if key in node}
    return {**notes, "anyOf": [node, {"type": "null"}]}


def _style_of(options: Json, place: str) -> tuple[str, bool]:
    """Return the style of a parameter or field, and whether it's exploded (OpenAPI 3.1, Style Values)."""
    if options.get("type") == "array":  # of version 2.0
        options = COLLECTIONS.get(options.get("collectionFormat", "csv"), {})
    style = str(options.get("style") or ("simple" if place in ("path", "header") else "form"))
    explode = options.get("explode")
    # Exploded lists and objects would become several cookies.
    return style, place != "cookie" and (explode if isinstance(explode, bool) else style == "form")


def parameter_key(name: str, place: str) -> tuple[str, str]:
    """Return the key of a parameter. Many servers read ``_`` and ``-`` in names of headers as the same character."""
    return (re.sub(r"[\W_]", "-", name.lower()) if place == "header" else name), place


def _servers_of(holder: Any) -> list[str]:
    """Return the servers of a document, path, or operation, in which variables have their default values."""
    return [text for each in items_of(members(holder).get("servers")) if (text := _fill_in(members(each)))]


def _fill_in(server: Json) -> str:
    values = members(server.get("variables"))
    return re.sub(
        "{([^{}]*+)}", lambda name: str(members(values.get(name[1])).get("default", "")), str(server.get("url", ""))
    )


def origin_of(url: str) -> str:
    parts = split_url(join_url("https:", url.lower()))  # without a scheme, it's the document's own
    host = parts.netloc.removesuffix({"http": ":80", "https": ":443"}.get(parts.scheme, ":"))
    return f"{parts.scheme}://{host}" if host else ""


def _is_below(path: str, base: str) -> bool:
    """Return whether a path is that of a base URL, or below it. The base URL has no trailing slash."""
    return f"{path}/".startswith(f"{urlsplit(base).path}/")
