"""What an OpenAPI document offers: its operations, the arguments that each takes, and what it gives.

Schemas keep their shape; a reference to the document's components becomes one to ``$defs``, which come along.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from msgspec import Struct

from millstream._protocol.json_schema import is_array, is_object

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_COMPONENT = "#/components/schemas/"
_LONGEST = 56
"""Characters of a name."""
FORM, MULTIPART, JSON = "application/x-www-form-urlencoded", "multipart/form-data", "application/json"


class Argument(Struct, frozen=True):
    """Where one argument of a tool goes in the request."""

    name: str
    """As the API calls it."""
    place: str
    """``path``, ``query``, ``header``, ``cookie``, ``field`` of the body, or ``body``."""
    explode: bool = True
    """A list of a query is one pair for each item."""


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
        place_of_fields, fields, needed, media = self._body(operation)
        arguments: dict[str, Argument] = {}
        properties: dict[str, Any] = {}
        required: list[str] = []
        for (own, place), parameter in several.items():
            taken = own in fields or own in arguments
            name = f"{own}__{place}" if taken else own
            arguments[name] = Argument(own, place, explode=parameter.get("explode", True))
            about = str(parameter.get("description") or "")
            about = f"{about} ({place.capitalize()} parameter)".strip() if taken else about
            properties[name] = {**parameter.get("schema", {}), **({"description": about} if about else {})}
            if parameter.get("required") or place == "path":
                required.append(name)
        for name, schema in fields.items():
            arguments[name] = Argument(name, place_of_fields)
            properties[name] = schema
        required += needed
        output, wrapped = self._output(operation)
        return HTTPRoute(
            path, method, operation.get("operationId"), operation.get("summary"), operation.get("description"),
            list(operation.get("tags") or ()), arguments,
            self._whole({"type": "object", "properties": properties, "required": required}), output, wrapped, media,
        )  # fmt: skip

    def _body(self, operation: dict[str, Any]) -> tuple[str, dict[str, Any], list[str], str]:
        """The place of what the body holds, its fields, which of them are required, and its media type."""
        body = self._meant(operation.get("requestBody") or {})
        media, schema = _schema_of(body, (FORM, MULTIPART))
        if schema is None:
            return "field", {}, [], ""
        whole = self._meant(schema)
        if "allOf" in whole:
            parts = [self._meant(each) for each in whole["allOf"]]
            whole = {
                "properties": {name: each for part in parts for name, each in part.get("properties", {}).items()},
                "required": [name for part in parts for name in part.get("required", ())],
            }
        if not is_object(whole.get("properties")):
            name = re.sub(r"\W+", "_", str(schema.get("title", ""))).lower() or "body"
            return "body", {name: schema}, [name] if body.get("required") else [], media
        needed = whole.get("required", ()) if body.get("required") else ()
        return "field", dict(whole["properties"]), list(needed), media

    def _output(self, operation: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
        responses: dict[str, Any] = operation.get("responses") or {}
        code = next((each for each in sorted(responses) if each.startswith("2")), "")
        _, schema = _schema_of(self._meant(responses.get(code) or {}), ())
        if schema is None:
            return None, False
        whole = self._meant(schema)
        if whole.get("type") == "object" or "properties" in whole:
            return self._whole({**whole, "type": "object"}), False
        found = {"type": "object", "properties": {"result": schema}, "required": ["result"]}
        return self._whole({**found, "x-fastmcp-wrap-result": True}), True

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

    def _whole(self, schema: dict[str, Any]) -> dict[str, Any]:
        """A schema with the definitions that it needs."""
        definitions: dict[str, Any] = {}

        def moved(node: Any) -> Any:
            if is_array(node):
                return [moved(each) for each in node]
            if not is_object(node):
                return node
            reference = node.get("$ref")
            if isinstance(reference, str) and reference.startswith(_COMPONENT):
                name = reference.removeprefix(_COMPONENT)
                if name not in definitions:
                    definitions[name] = {}
                    definitions[name] = moved(self._meant(node))
                return {**node, "$ref": f"#/$defs/{name}"}
            made = {key: moved(value) for key, value in node.items() if key != "nullable"}
            if node.get("nullable") is True and isinstance(made.get("type"), str):
                made["type"] = [made["type"], "null"]  # as 3.1 says it
            return made

        made: dict[str, Any] = moved(schema)
        return {**made, "$defs": definitions} if definitions else made


def _schema_of(holder: dict[str, Any], more: tuple[str, ...]) -> tuple[str, dict[str, Any] | None]:
    """The media type and the schema of a body: JSON if there is some."""
    content: dict[str, Any] = holder.get("content") or {}
    for kind, about in content.items():
        plain = kind.partition(";")[0].strip()
        if plain == JSON or plain.endswith("+json") or plain in more:
            return kind, about.get("schema") or {}
    return "", None
