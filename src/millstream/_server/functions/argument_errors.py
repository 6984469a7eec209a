"""What a model reads when its arguments don't fit: what is wrong, and what was expected.

msgspec stops at the first problem and speaks of Python types; this puts it into JSON's words, and adds every missing
and unknown name. Runs only for arguments that were refused; what a schema written by hand refuses comes from
`schema_check`.
"""

import re
from typing import Any

import msgspec

from millstream._protocol.json_schema import Schema, is_object

MAX_WALKED = 64 * 1024
"""Bytes of JSON whose values are looked at one by one; what is larger gets the decoder's own answer."""
MAX_LISTED = 20
MAX_SHOWN = 80
"""How much of a peer's own text is repeated."""

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

WORDS = {
    "int": "an integer", "str": "a string", "float": "a number", "bool": "true or false", "null": "null",
    "array": "an array", "object": "an object", "bytes": "a base64 string", "decimal": "a decimal number as text",
    "date": "a date as text", "datetime": "a date and time as text", "time": "a time as text",
    "duration": "a duration as text", "uuid": "a UUID as text",
    "integer": "an integer", "string": "a string", "number": "a number", "boolean": "true or false",
}  # fmt: skip
"""msgspec's names of types, and JSON Schema's."""

BAD_DECIMAL = "Invalid decimal string"
FORMS = {
    "Invalid RFC3339 encoded datetime": "a date and time such as 1999-12-31T12:00:00Z",
    "Invalid RFC3339 encoded date": "a date such as 1999-12-31",
    "Invalid RFC3339 encoded time": "a time such as 12:00:00Z",
    "Invalid ISO8601 duration": "a duration such as PT90S",
    "Invalid UUID": "a UUID",
    BAD_DECIMAL: "a decimal number as text, such as 1.50",
    "Invalid base64 encoded string": "a base64 string",
}
"""What msgspec says of a text that is not what it should be, and what that is."""

SECRET = re.compile(r"passw|passphrase|secret|token|credential|authorization|api_?key", re.IGNORECASE)
"""Names of what is not repeated, whatever its schema says: the text may end in a log."""
STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
PLACE = re.compile(r"(.*?)(?: - at (`key` in )?`([^`]*)`)?", re.DOTALL)
WRONG_TYPE = re.compile(r"Expected `(.+)`, got `(.+)`")
WRONG_VALUE = re.compile(r"Expected `(.+?)` (.+)", re.DOTALL)
MISSING = re.compile(r"Object missing required field `(.+)`", re.DOTALL)
UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
NO_ALTERNATIVE = "fits none of its alternatives: "
"""How `unions` begins what it says."""
WHOLE = (NO_ALTERNATIVE, "must be ")
"""How sentences begin that our own readers say about a value."""
NOT_LISTED = re.compile(r"Invalid enum value (.+)", re.DOTALL)


def explain(error: Exception, schema: Schema, raw: bytes) -> str:
    """Say what to fix: ``'a' must be an integer, got a string. Expected: {"a": integer}``.

    Args:
        error: what decoding or converting the arguments raised.
        schema: that they should have fitted.
        raw: the arguments, to name every missing and unknown one and not only the first; may be empty.
    """
    missing, unknown = _names(schema, raw)
    problems: list[str] = []
    if missing:
        problems.append(f"missing {listed(missing)}")
    if unknown:
        problems.append(f"unknown {listed(unknown)}")
    first = _problem(str(error), schema, raw)
    if not (problems and first.startswith(("missing '", "unknown '"))):
        problems.append(first)
    return f"{'; '.join(problems)}. {expected(schema)}"


def _names(schema: Schema, raw: bytes) -> tuple[list[str], list[str]]:
    """Top-level names that are required but absent, and those that do not exist."""
    try:
        arguments = _decode_members(raw if len(raw) <= MAX_WALKED else b"")
    except msgspec.DecodeError:
        return [], []
    properties = schema.get("properties", {})
    closed = schema.get("additionalProperties") is False
    missing = [name for name in schema.get("required", []) if name not in arguments]
    return missing, [name for name in arguments if closed and name not in properties]


def _value(raw: bytes, path: str) -> tuple[Any, bool]:
    """The value at a path like ``a.b[0]``, and whether it was found."""
    if "[...]" in path or not raw or len(raw) > MAX_WALKED:
        return None, False
    try:
        value: Any = msgspec.json.decode(raw)
        for name, index in STEP.findall(path):
            value = value[int(index)] if index else value[name]
    except (msgspec.DecodeError, LookupError, TypeError):
        return None, False
    return value, True


def _node(schema: Schema, path: str) -> Schema:
    """What a schema says about the value at a path; nothing where it cannot be found."""
    node = schema
    for name, index in STEP.findall(path):
        found = [child for part in _parts(node, schema) if (child := _child(part, name, index))]
        node = found[0] if found else {}
    return node


def _parts(node: Schema, schema: Schema) -> list[Schema]:
    """A schema and its alternatives, without references."""
    definitions = schema.get("$defs", {})
    alternatives: list[Any] = node.get("anyOf", [])
    return [
        definitions.get(part.get("$ref", "").rpartition("/")[2], part)
        for part in (node, *alternatives)
        if is_object(part)
    ]


def _child(node: Schema, name: str, index: str) -> Schema:
    child: Any = node.get("additionalProperties")
    if name:
        child = node.get("properties", {}).get(name, child)
    else:
        places: list[Any] = node.get("prefixItems", [])
        child = places[int(index)] if int(index) < len(places) else node.get("items")
    return child if is_object(child) else {}


def _got(raw: bytes, path: str, node: Schema, kind: str = "") -> str:
    """``, got the string "hello"``: what stands at a path, cut; nothing of what is secret."""
    value, found = _value(raw, path)
    text = _json(value) if found else ""
    hidden = SECRET.search(path) or any(
        part.get("writeOnly") or part.get("format") == "password" for part in _parts(node, {})
    )
    if not found or hidden or (text[0] in "[{" and SECRET.search(text)):
        return f", got {kind}" if kind else ""
    text = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
    return f", got {'the ' + kind.partition(' ')[2] + ' ' if kind.startswith(('a ', 'an ')) else ''}{text}"


def _problem(message: str, schema: Schema, raw: bytes) -> str:
    match = PLACE.fullmatch(message)
    problem, key, path = match.groups() if match else (message, None, None)
    name = (path or "$").removeprefix("$").removeprefix(".")
    subject = f"'{name[:MAX_SHOWN]}'" if name else "the arguments"
    if key:
        return f"a key of {in_words(problem, subject, {}, b'', '')}"
    return in_words(problem, subject, _node(schema, name), raw, name)


def in_words(problem: str, subject: str, node: Schema, raw: bytes, path: str) -> str:
    """One problem that msgspec names, in the words of JSON.

    Args:
        problem: as msgspec says it, without the place.
        subject: what has the problem.
        node: the schema of that.
        raw: the arguments, to show the value; may be empty.
        path: where the value stands in them.
    """
    if problem in FORMS:
        return f"{subject} must be {FORMS[problem]}{_got(raw, path, node)}"
    if found := WRONG_TYPE.fullmatch(problem):
        return f"{subject} must be {words(found[1])}{_got(raw, path, node, words(found[2]))}"
    if found := WRONG_VALUE.fullmatch(problem):
        return f"{subject} must be {words(found[1])} {found[2]}{_got(raw, path, node)}"
    for pattern, word in ((MISSING, "missing"), (UNKNOWN, "unknown")):
        if found := pattern.fullmatch(problem):
            inside = f" in {subject}" if path else ""
            return f"{word} '{found[1][:MAX_SHOWN]}'{inside}"
    if found := NOT_LISTED.fullmatch(problem):
        choices: list[Any] = [each for part in _parts(node, {}) for each in part.get("enum", ())]
        wanted = ", ".join(map(_json, choices[:MAX_LISTED])) + (", …" if len(choices) > MAX_LISTED else "")
        got = _got(raw, path, node) or f", got {found[1][:MAX_SHOWN]}"
        return f"{subject} {f'must be one of {wanted}' if choices else 'has no such choice'}{got}"
    if problem.startswith(WHOLE):
        return f"{subject} {problem}{_got(raw, path, node)}"
    return f"{subject}: {problem.partition(', got ')[0] if SECRET.search(path) else problem}"


def words(types: str) -> str:
    """Names of types, separated by ``|``, in the words of JSON."""
    return " or ".join(WORDS.get(part, part) for part in types.split(" | "))


def listed(names: list[str]) -> str:
    """The names in quotes, not too many and none too long."""
    shown = ", ".join(f"'{name[:MAX_SHOWN]}'" for name in names[:MAX_LISTED])
    return shown if len(names) <= MAX_LISTED else f"{shown} and {len(names) - MAX_LISTED} more"


def expected(schema: Schema) -> str:
    """The properties of a schema in a line."""
    properties: dict[str, Any] = schema.get("properties", {})
    if not properties:
        return "Expected: no arguments" if schema.get("additionalProperties") is False else "Expected: an object"
    required = schema.get("required", [])
    parts = [
        f"{_json(name)}: {_kind(node)}{'' if name in required else ' (optional)'}"
        for name, node in list(properties.items())[:MAX_LISTED]
    ]
    more = ", …" if len(properties) > MAX_LISTED else ""
    return f"Expected: {{{', '.join(parts)}{more}}}"


def _kind(node: Any) -> str:
    """One property in a word or two."""
    if not is_object(node):
        return "any"
    if "enum" in node:
        return " | ".join(_json(choice) for choice in node["enum"])
    if "anyOf" in node:
        return " | ".join(_kind(part) for part in node["anyOf"])
    kind = node.get("type", "object" if "$ref" in node else "any")
    if kind == "array" and is_object(node.get("items")):
        return f"array of {_kind(node['items'])}"
    kinds: list[str] = [kind] if isinstance(kind, str) else kind
    return " | ".join(kinds)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
