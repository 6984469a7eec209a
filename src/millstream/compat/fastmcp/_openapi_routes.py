"""What an OpenAPI document offers: its operations, the arguments that each takes, and what it gives.

Schemas keep their shape; a reference to the document's components becomes one to ``$defs``, which come along.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from msgspec import Struct

from millstream._protocol.json_schema import is_array, is_object
from millstream.compat.fastmcp._signatures import inlined

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_COMPONENT = "#/components/schemas/"
_MOST_PARTS = 10_000
"""Parts of a schema whose definitions are written out where they're used, as fastmcp does it."""
_LONGEST = 56
"""Characters of a name."""
FORM, MULTIPART, JSON = "application/x-www-form-urlencoded", "multipart/form-data", "application/json"
TEXT = "text/plain"
_BETWEEN = {"pipeDelimited": "|", "spaceDelimited": " "}
_NAMED = ("properties", "patternProperties", "$defs")
"""Keywords whose members have names of their own, which may be those of keywords."""


class Argument(Struct, frozen=True):
    """Where one argument of a tool goes in the request."""

    name: str
    """As the API calls it."""
    place: str
    """``path``, ``query``, ``header``, ``cookie``, ``field`` of the body, or ``body``."""
    form: str = ""
    """How an object or a list is written in a query or a form: what stands between the items of a list, `deep`
    for ``name[key]=value``, `json`, or nothing, which is one pair for each item."""


class HTTPRoute(Struct, frozen=True):
    """One operation, as functions of the program see it."""

    path: str
    method: str
    operation_id: str | None
    summary: str | None
    description: str | None
    tags: list[str]
    arguments: Mapping[str, Argument]
    """By the name that a model uses."""
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None
    wrapped: bool
    """What it gives isn't an object, and stands under `result`."""
    media: str
    """The media type of the body."""

    @property
    def told(self) -> str:
        """What a model reads."""
        return self.description or self.summary or f"Executes {self.method} {self.path}"

    def name(self, given: Mapping[str, str]) -> str:
        """The name of the tool or resource."""
        own = (self.operation_id or "").split("__")[0]
        found = given.get(self.operation_id or "") or own or self.summary or f"{self.method}_{self.path}"
        return re.sub(r"_+", "_", re.sub(r"\W+", "_", found)).strip("_")[:_LONGEST]


class Document:
    """An OpenAPI document of version 3.0 or 3.1.

    Raises:
        ValueError: it is something else.
    """

    def __init__(self, spec: Any) -> None:
        if not is_object(spec) or not is_object(spec.get("paths")):
            raise ValueError("That's no OpenAPI document: it has no paths")
        if not str(spec.get("openapi", "")).startswith("3."):
            raise ValueError("The OpenAPI document must be of version 3.0 or 3.1: convert it first")
        self._spec: dict[str, Any] = spec

    @property
    def url(self) -> str:
        """Where the API is, if the document says so."""
        servers: list[dict[str, Any]] = self._spec.get("servers") or [{}]
        return str(servers[0].get("url", ""))

    def routes(self) -> Iterator[HTTPRoute]:
        """The operations."""
        for path, item in self._spec["paths"].items():
            shared = self._meant(item)
            for method in _METHODS:
                if is_object(shared.get(method)):
                    yield self._route(path, method.upper(), shared, shared[method])

    def _route(self, path: str, method: str, shared: dict[str, Any], operation: dict[str, Any]) -> HTTPRoute:
        several: dict[tuple[str, str], dict[str, Any]] = {}
        for given in (*operation.get("parameters", ()), *shared.get("parameters", ())):
            parameter = self._meant(given)
            several.setdefault((parameter["name"], parameter["in"]), parameter)
        place_of_fields, fields, needed, media, forms = self._body(operation)
        arguments: dict[str, Argument] = {}
        properties: dict[str, Any] = {}
        required: list[str] = []
        for (own, place), parameter in several.items():
            taken = own in fields or own in arguments
            name = f"{own}__{place}" if taken else own
            arguments[name] = Argument(own, place, _form_of(parameter))
            about = str(parameter.get("description") or "")
            about = f"{about} ({place.capitalize()} parameter)".strip() if taken else about
            properties[name] = {**parameter.get("schema", {}), **({"description": about} if about else {})}
            if parameter.get("required") or place == "path":
                required.append(name)
        for name, schema in fields.items():
            arguments[name] = Argument(name, place_of_fields, forms.get(name, ""))
            properties[name] = schema
        required += needed
        output, wrapped = self._output(operation)
        return HTTPRoute(
            path, method, operation.get("operationId"), operation.get("summary"), operation.get("description"),
            list(operation.get("tags") or ()), arguments,
            self._whole({"type": "object", "properties": properties, "required": required}), output, wrapped, media,
        )  # fmt: skip

    def _body(self, operation: dict[str, Any]) -> tuple[str, dict[str, Any], list[str], str, dict[str, str]]:
        """The place of what the body holds, its fields, which of them are required, its media type, and their forms."""
        body = self._meant(operation.get("requestBody") or {})
        media, about = _content_of(body, (FORM, MULTIPART, TEXT))
        if not media:
            return "field", {}, [], "", {}
        schema: dict[str, Any] = about.get("schema") or {}
        fields, needed = self._fields(schema)
        if not fields:
            name = re.sub(r"\W+", "_", str(self._meant(schema).get("title", ""))).lower() or "body"
            return "body", {name: schema}, [name] if body.get("required") else [], media, {}
        encodings: dict[str, Any] = about.get("encoding") or {}
        forms = {name: _form_of(each) for name, each in encodings.items()}
        return "field", fields, needed if body.get("required") else [], media, forms

    def _fields(self, schema: dict[str, Any], seen: set[int] | None = None) -> tuple[dict[str, Any], list[str]]:
        """The properties of an object with those of all its parts and kinds, and which of them are required."""
        whole, visited = self._meant(schema), set[int]() if seen is None else seen
        fields: dict[str, Any] = {}
        needed: list[str] = []
        if id(whole) in visited:
            return fields, needed
        visited.add(id(whole))
        for part in whole.get("allOf") or ():
            more, required = self._fields(part, visited)
            fields |= more
            needed += required
        fields |= whole.get("properties") or {}
        needed += whole.get("required") or ()
        discriminator: dict[str, Any] = whole.get("discriminator") or {}
        kinds: dict[str, str] = discriminator.get("mapping") or {}
        for kind in kinds.values():
            more, _ = self._fields({"$ref": kind if kind.startswith("#/") else _COMPONENT + kind}, visited)
            fields = more | fields
        return fields, list(dict.fromkeys(needed))

    def _output(self, operation: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
        responses: dict[str, Any] = operation.get("responses") or {}
        code = next((each for each in sorted(responses) if each.startswith("2")), "")
        media, about = _content_of(self._meant(responses.get(code) or {}), ())
        if not media:
            return None, False
        schema: dict[str, Any] = about.get("schema") or {}
        whole = self._meant(schema)
        if whole.get("type") == "object" or "properties" in whole:
            return self._whole({**whole, "type": "object"}, given=True), False
        found = {"type": "object", "properties": {"result": schema}, "required": ["result"]}
        return self._whole({**found, "x-fastmcp-wrap-result": True}, given=True), True

    def _hidden(self, schema: dict[str, Any]) -> frozenset[str]:
        """The properties of an object that the API takes and never gives."""
        fields, _ = self._fields(schema)
        return frozenset(
            name for name, each in fields.items() if is_object(each) and self._meant(each).get("writeOnly") is True
        )

    # References

    def _meant(self, node: dict[str, Any]) -> dict[str, Any]:
        """What a reference leads to; anything else is itself."""
        for _ in range(20):
            reference = node.get("$ref")
            if not isinstance(reference, str) or not reference.startswith("#/"):
                return node
            found: Any = self._spec
            for part in reference[2:].split("/"):
                found = found.get(part.replace("~1", "/").replace("~0", "~"), {}) if is_object(found) else {}
            node = cast("dict[str, Any]", found)
        return {}

    def _whole(self, schema: dict[str, Any], *, given: bool = False) -> dict[str, Any]:
        """A schema with the definitions that it needs; of what the API gives, without what it never shows."""
        definitions: dict[str, Any] = {}

        def moved(node: Any, hidden: frozenset[str] = frozenset()) -> Any:
            if is_array(node):
                return [moved(each, hidden) for each in node]
            if not is_object(node):
                return node
            if given and not isinstance(node.get("$ref"), str):
                hidden |= self._hidden(node)
                node = _without(node, hidden)
            reference = node.get("$ref")
            if isinstance(reference, str) and reference.startswith(_COMPONENT):
                name = reference.removeprefix(_COMPONENT)
                if name not in definitions:
                    definitions[name] = {}
                    definitions[name] = moved(self._meant(node))
                return {**node, "$ref": f"#/$defs/{name}"}
            made = _members(node, hidden, moved)
            if node.get("nullable") is True and isinstance(made.get("type"), str):
                made["type"] = [made["type"], "null"]  # as 3.1 says it
            return made

        made = cast("dict[str, Any]", moved(schema))
        if not definitions:
            return made
        made = {**made, "$defs": definitions}
        flat = inlined(made, most=_MOST_PARTS)
        return made if "$defs" in flat else flat  # where one contains itself, all stay, as in fastmcp


def _members(node: dict[str, Any], hidden: frozenset[str], moved: Callable[..., Any]) -> dict[str, Any]:
    """The keywords of a schema with their schemas moved; parts of it are about the same object."""
    made: dict[str, Any] = {}
    for key, value in node.items():
        if key in _NAMED and is_object(value):
            made[key] = {name: moved(each) for name, each in value.items()}
        elif key != "nullable":
            made[key] = moved(value, hidden if key == "allOf" else frozenset())
    return made


def _without(node: dict[str, Any], hidden: frozenset[str]) -> dict[str, Any]:
    """The schema of an object without some of its properties."""
    made = dict(node)
    if is_object(node.get("properties")):
        made["properties"] = {name: each for name, each in node["properties"].items() if name not in hidden}
    if is_array(node.get("required")):
        made["required"] = [name for name in node["required"] if name not in hidden]
    return made


def _form_of(about: Mapping[str, Any]) -> str:
    """How a parameter or a field of a form is written (OpenAPI 3.1, Style Values); see `Argument.form`."""
    style = about.get("style", "form")
    if str(about.get("contentType", "")).partition(";")[0].endswith("json"):
        return "json"
    if style == "deepObject":
        return "deep"
    return "" if about.get("explode", style == "form") else _BETWEEN.get(style, ",")


def _content_of(holder: dict[str, Any], more: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The media type of a body, JSON if there is some, and what the document says of it; empty without."""
    content: dict[str, Any] = holder.get("content") or {}
    for kind, about in content.items():
        plain = kind.partition(";")[0].strip()
        if plain == JSON or plain.endswith("+json") or plain in more:
            return kind, about
    return "", {}
