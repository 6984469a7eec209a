"""Values against a schema written by hand: whether they fit, and what a model reads when they don't.

`jsonschema-rs` decides, in time that grows with the value and not with the number of ways through the schema. Its
list of errors has no such bound, so the reasons are looked for here: from the root down into what does not fit, a
few steps far. Nothing is ever fetched. The library is an extra, loaded where such a schema is registered
(docs/decisions/0008).
"""

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from millstream._protocol.errors import MissingExtra
from millstream._protocol.json_schema import LISTS, MAPS, SINGLE, Schema, check_schema, is_array, is_object
from millstream._server.functions.argument_errors import MAX_LISTED, MAX_SHOWN, listed, words

MAX_BACKTRACKS = 10_000
"""Steps of one `pattern` on one string, where it looks around or back; all other patterns take linear time."""
MAX_REASONS = 3
MAX_STEPS = 50
"""How many parts of a schema are asked for reasons."""
MAX_READ = 1_000_000
"""How many bytes of JSON they may read together."""
MAX_LOOKED = 1_000
"""How many members of one object or array are looked at for reasons."""
MAX_SCHEMA = 200
"""How much of a schema is repeated."""

_ENTERED = frozenset(
    ("$defs", "$ref", "additionalProperties", "allOf", "anyOf", "definitions", "else", "if", "items", "oneOf",
     "prefixItems", "properties", "then")
)  # fmt: skip
"""Keywords whose schemas are asked for reasons."""
_NOT_ENTERED = (SINGLE | LISTS | MAPS | {"$dynamicRef"}) - _ENTERED
"""The other keywords that say nothing without the schemas they hold or name."""
_OWN = frozenset(
    ("const", "dependentRequired", "enum", "exclusiveMaximum", "exclusiveMinimum", "maxItems", "maxLength",
     "maxProperties", "maximum", "minItems", "minLength", "minProperties", "minimum", "multipleOf", "pattern",
     "required", "type", "uniqueItems")
)  # fmt: skip
"""Keywords that can be asked by themselves (2020-12 validation §6)."""
_KINDS: dict[type, str] = {
    dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null",
}  # fmt: skip


class Part(NamedTuple):
    """A part of the schema, and the part of the value that has to fit it."""

    pointer: str
    """JSON Pointer of the part of the schema."""
    schema: Any
    value: Any
    place: str
    """Where the value is: ``a.b[0]``; empty for the whole."""


class SchemaCheck:
    """One schema, ready to be asked about any number of values.

    Raises:
        ValueError: for a schema that cannot be served, saying what is wrong and where.
        ImportError: the library is not installed.
    """

    __slots__ = ("_compile", "_parts", "_schema", "_whole", "fits")

    def __init__(self, schema: Schema, *, whole: str, object_root: bool = True) -> None:
        check_schema(schema, object_root=object_root)
        try:
            import jsonschema_rs  # noqa: PLC0415  an extra
        except ImportError:
            raise MissingExtra("Checking arguments against a schema written by hand", "schema") from None
        patterns = jsonschema_rs.FancyRegexOptions(backtrack_limit=MAX_BACKTRACKS)
        self._compile: Callable[[Schema], Any] = lambda part: jsonschema_rs.Draft202012Validator(
            part, offline=True, pattern_options=patterns
        )
        try:
            self.fits: Callable[[Any], bool] = self._compile(schema).is_valid
            """Whether a JSON value fits."""
        except jsonschema_rs.ValidationError as error:
            raise ValueError(f"#{''.join(f'/{each}' for each in error.instance_path)}: {error.message}") from error
        self._parts = jsonschema_rs.validator_map_for(schema, offline=True, pattern_options=patterns)
        self._schema = schema
        self._whole = whole
        """What the value as a whole is called."""

    def reasons(self, value: Any, size: int) -> str:
        """What to fix in a value that does not fit: ``'a.b' must be an integer, got a string; missing 'c'``.

        Args:
            value: a JSON value.
            size: of its JSON, in bytes: each step may read all of it, so a large value gets fewer.
        """
        steps = iter(range(min(MAX_STEPS, max(1, MAX_READ // (size or 1)))))
        return "; ".join(islice(self._reasons(Part("#", self._schema, value, ""), steps), MAX_REASONS))

    def _reasons(self, part: Part, steps: Iterator[int]) -> Iterator[str]:
        reason = None
        if next(steps, None) is not None and is_object(part.schema):
            below = (each for each in self._below(part) if not self._fits(each))
            inside = chain.from_iterable(self._reasons(each, steps) for each in below)
            for reason in chain(self._own(part), self._alternatives(part, steps), inside):
                yield reason
        if reason is None:
            yield f"{self._subject(part)} does not fit {_shown(_not_entered(part.schema), MAX_SCHEMA)}"

    def _fits(self, part: Part) -> bool:
        check = self._parts.get(part.pointer)
        return check is None or check.is_valid(part.value)

    def _subject(self, part: Part) -> str:
        return f"'{part.place}'" if part.place else self._whole

    def _own(self, part: Part) -> Iterator[str]:
        """What the keywords of this part alone have against the value, asked one by one: a list copies the value."""
        value, subject, inside = part.value, self._subject(part), f" in '{part.place}'" if part.place else ""
        for keyword, wanted in part.schema.items():
            if keyword not in _OWN or self._compile({keyword: wanted}).is_valid(value):
                continue
            match keyword:
                case "type":
                    kinds = [wanted] if isinstance(wanted, str) else wanted
                    yield f"{subject} must be {words(' | '.join(kinds))}, got {words(_KINDS[type(value)])}"
                case "required":
                    yield f"missing {listed([name for name in wanted if name not in value])}{inside}"
                case "enum":
                    yield f"{subject} must be one of {', '.join(map(_shown, wanted[:MAX_LISTED]))}, got {_shown(value)}"
                case _:
                    yield f"{subject} must fit {_shown({keyword: wanted}, MAX_SCHEMA)}, got {_shown(value)}"
        if part.schema.get("additionalProperties") is False and is_object(value):
            unknown = self._unknown(part)
            if unknown:
                yield f"unknown {listed(unknown)}{inside}"

    def _unknown(self, part: Part) -> list[str]:
        """Names that an object without additional properties does not know."""
        known = {each: dict.fromkeys(part.schema.get(each, ()), True) for each in ("properties", "patternProperties")}
        closed = self._compile({**known, "additionalProperties": False})
        return [name for name in islice(part.value, MAX_LOOKED) if not closed.is_valid({name: None})]

    def _alternatives(self, part: Part, steps: Iterator[int]) -> Iterator[str]:
        for keyword in ("anyOf", "oneOf"):
            choices = [
                Part(f"{part.pointer}/{keyword}/{index}", choice, part.value, part.place)
                for index, choice in enumerate(part.schema.get(keyword, ()))
            ]
            fitting = sum(map(self._fits, choices))
            if choices and not fitting:
                why = " or ".join(f"({next(self._reasons(each, steps))})" for each in choices[:MAX_REASONS])
                yield f"{self._subject(part)} must fit an alternative of {keyword}: {why}"
            elif keyword == "oneOf" and fitting > 1:
                yield f"{self._subject(part)} must fit one alternative of oneOf, not {fitting}"

    def _below(self, part: Part) -> Iterator[Part]:
        """What must fit for the part to fit: further schemas of the same value, then those of its members."""
        pointer, schema, value, place = part
        if schema.get("$ref", "").startswith("#"):
            target = unquote(schema["$ref"])
            yield Part(target, self._at(target), value, place)
        for index, every in enumerate(schema.get("allOf", ())):
            yield Part(f"{pointer}/allOf/{index}", every, value, place)
        if "if" in schema:
            branch = "then" if self._fits(Part(f"{pointer}/if", schema["if"], value, place)) else "else"
            yield Part(f"{pointer}/{branch}", schema.get(branch, True), value, place)
        if is_object(value):
            yield from islice(_members(part), MAX_LOOKED)
        elif is_array(value):
            yield from islice(_items(part), MAX_LOOKED)

    def _at(self, pointer: str) -> Any:
        """The part of the schema at a pointer; an empty one for an anchor, about which nothing more can be said."""
        node: Any = self._schema
        try:
            for token in pointer.removeprefix("#").split("/")[1:]:
                name = token.replace("~1", "/").replace("~0", "~")
                node = node[int(name)] if is_array(node) else node[name]
        except (LookupError, ValueError):  # it counts from an `$id` inside the document
            return {}
        return node if pointer.startswith("#/") or pointer == "#" else {}


def _members(part: Part) -> Iterator[Part]:
    properties, others = part.schema.get("properties", {}), part.schema.get("additionalProperties", True)
    for name, value in part.value.items():
        shown = name[:MAX_SHOWN]
        place = f"{part.place}.{shown}" if part.place else shown
        if name in properties:
            token = name.replace("~", "~0").replace("/", "~1")
            yield Part(f"{part.pointer}/properties/{token}", properties[name], value, place)
        elif others is not False and "patternProperties" not in part.schema:
            yield Part(f"{part.pointer}/additionalProperties", others, value, place)


def _items(part: Part) -> Iterator[Part]:
    first = part.schema.get("prefixItems", ())
    for index, value in enumerate(part.value):
        place = f"{part.place}[{index}]"
        if index < len(first):
            yield Part(f"{part.pointer}/prefixItems/{index}", first[index], value, place)
        else:
            yield Part(f"{part.pointer}/items", part.schema.get("items", True), value, place)


def _not_entered(schema: Any) -> Any:
    """The keywords that are left as the reason, when those that were asked gave none."""
    if not is_object(schema):
        return schema
    return {name: wanted for name, wanted in schema.items() if name in _NOT_ENTERED} or schema


def _shown(value: Any, most: int = MAX_SHOWN) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= most else f"{text[:most]}…"
