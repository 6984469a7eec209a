"""Restrictions on tool schemas, as published for current clients and model APIs. Each rule cites its source."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from jsonschema import Draft202012Validator

from millstream.protocol import Json

Problems = Iterator[str]


def _nodes(node: Any, path: str = "#") -> Iterator[tuple[str, Any]]:
    yield path, node
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield from _nodes(value, f"{path}/{key}")


def _schemas(schema: Json) -> Iterator[tuple[str, Json]]:
    """Yield the schema objects, but no properties that are called like keywords."""
    for path, node in _nodes(schema):
        if isinstance(node, dict) and not re.search(r"/(properties|\$defs|patternProperties)$", path):
            yield path, node


def vscode(schema: Json) -> Problems:
    """VS Code: "tool parameters array type must have items" (microsoft/vscode#246119, #257537)."""
    for path, node in _schemas(schema):
        if node.get("type") == "array" and not isinstance(node.get("items"), dict):
            yield f"{path}: an array without items"


def claude(schema: Json) -> Problems:
    """Claude's API: names of properties are ``^[a-zA-Z0-9_.-]{1,64}$``, and the root is an object without oneOf, allOf,
    or anyOf (platform.claude.com/docs, tool use; anthropics/claude-code#34771, #88049).
    """
    for path, node in _schemas(schema):
        for name in node.get("properties", {}):
            if not re.fullmatch("[a-zA-Z0-9_.-]{1,64}", name):
                yield f"{path}: the property {name!r}"
    yield from (f"#: {each} at the root" for each in ("oneOf", "anyOf", "allOf") if each in schema)


def openai(schema: Json) -> Problems:
    """OpenAI's API: the root is an object, with `properties` (developers.openai.com, function calling)."""
    if schema.get("type") != "object" or not isinstance(schema.get("properties", {}), dict):
        yield "#: not an object"


def gemini(schema: Json) -> Problems:
    """Gemini: enums of texts have the type string, arrays have items, and `required` names properties
    (ai.google.dev/api/caching#Schema; google-gemini/gemini-cli#13326). No choice is null, and every alternative has a
    type (router-for-me/CLIProxyAPI#4545, zereight/gitlab-mcp#166).
    """
    for path, node in _schemas(schema):
        names = node.get("properties", {})
        if "properties" in node and not set(node.get("required", ())) <= names.keys():
            yield f"{path}: required names {node['required']}"
        if "enum" in node and all(isinstance(each, str) for each in node["enum"]) and node.get("type") != "string":
            yield f"{path}: an enum of texts without a type"
        if None in node.get("enum", ()):
            yield f"{path}: null among the choices"
        if {} in [*node.get("anyOf", ()), *node.get("oneOf", ())]:
            yield f"{path}: an alternative without a type"


def cursor(schema: Json) -> Problems:
    """Cursor and Copilot: a schema has one type, and isn't a boolean (cursor/cursor#3778, github/copilot-cli#4623)."""
    for path, node in _schemas(schema):
        if isinstance(node.get("type"), list):
            yield f"{path}: several types"
        if any(isinstance(each, bool) for each in node.get("properties", {}).values()):
            yield f"{path}: a boolean as the schema of a property"


def validators(schema: Json) -> Problems:
    """The validators of the official SDKs (ajv in TypeScript, jsonschema in Python): a valid schema of 2020-12, whose
    references and mappings lead somewhere (modelcontextprotocol/typescript-sdk, PrefectHQ/fastmcp#3679).
    """
    Draft202012Validator.check_schema(schema)
    for path, node in _nodes(schema):
        if isinstance(node, str) and node.startswith("#/") and ("/mapping/" in path or path.endswith("$ref")):
            target: Any = schema
            for part in node[2:].split("/"):
                target = target.get(part) if isinstance(target, dict) else None
            if target is None:
                yield f"{path}: {node} leads nowhere"
    for path, node in _schemas(schema):
        if node.get("required") == []:  # draft 4 forbids it
            yield f"{path}: required is empty"
        if len(choices := node.get("enum", ())) > len({*map(repr, choices)}):  # PrefectHQ/fastmcp#195
            yield f"{path}: a choice is repeated"


FORMATS = {
    *("date", "date-time", "duration", "email", "hostname", "idn-email", "idn-hostname", "ipv4", "ipv6", "iri"),
    *("iri-reference", "json-pointer", "regex", "relative-json-pointer", "time", "uri", "uri-reference"),
    *("uri-template", "uuid"),
}
"""JSON Schema 2020-12, validation §7.3."""


def formats(schema: Json) -> Problems:
    """The official TypeScript SDK: its validator warns about formats that JSON Schema doesn't define, whenever it reads
    a list (ajv-validator/ajv, strict mode).
    """
    for path, node in _schemas(schema):
        if node.get("format", "uri") not in FORMATS:
            yield f"{path}: the format {node['format']}"


KEYWORDS = {
    *("$anchor", "$comment", "$defs", "$id", "$ref", "$schema", "additionalProperties", "allOf", "anyOf", "const"),
    *("contains", "contentEncoding", "contentMediaType", "contentSchema", "default", "dependentRequired"),
    *("dependentSchemas", "deprecated", "description", "discriminator", "else", "enum", "examples"),
    *("exclusiveMaximum", "exclusiveMinimum", "format", "if", "items", "maxContains", "maxItems", "maxLength"),
    *("maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum", "multipleOf"),
    *("not", "oneOf", "pattern", "patternProperties", "prefixItems", "properties", "propertyNames", "readOnly"),
    *("required", "then", "title", "type", "unevaluatedItems", "unevaluatedProperties", "uniqueItems", "writeOnly"),
}
"""JSON Schema 2020-12, and OpenAPI's `discriminator`."""


def keywords(schema: Json) -> Problems:
    """Validators in their default mode: every keyword is known (ajv-validator/ajv, strict mode)."""
    for path, node in _schemas(schema):
        if not re.search("/(default|const|examples|enum|discriminator)(/|$)", path):
            yield from (f"{path}: the keyword {each}" for each in node if each not in KEYWORDS and each[:2] != "x-")


RULES: list[Callable[[Json], Problems]] = [vscode, claude, openai, gemini, cursor, validators, keywords]


OUTPUT_RULES: list[Callable[[Json], Problems]] = [validators, vscode, formats, keywords]


def refused(tool: Json) -> Problems:
    """Yield what clients refuse in the schemas of a listed tool."""
    for schema, rules in (tool["inputSchema"], RULES), (tool.get("outputSchema", {}), OUTPUT_RULES):
        yield from (f"{rule.__name__}: {problem}" for rule in rules for problem in rule(schema))
