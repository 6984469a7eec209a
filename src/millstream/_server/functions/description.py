"""Descriptions of tools, resources, and prompts, from decorator options, docstrings, and `Field`.

`Field` returns a `msgspec.Meta`, so it also works in dataclasses, Structs, and TypedDicts, and msgspec validates it
while decoding.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from importlib import import_module
from math import isfinite
from typing import Any, TypedDict, cast

import msgspec
from msgspec import NODEFAULT, Meta, Struct, to_builtins

from millstream._config import DURATION
from millstream._oauth import SCOPE
from millstream._protocol.content import Icon
from millstream._protocol.json_schema import is_object
from millstream._protocol.jsonrpc import Json
from millstream._protocol.principal import Principal
from millstream._suggestions import suggest, suggest_keywords, suggest_option

Names = list[str] | tuple[str, ...] | set[str] | frozenset[str]
"""Several strings. `Collection` would accept a single string as a collection of letters."""


class Labels(TypedDict, total=False):
    """Keyword options shared by the decorators."""

    title: str | None
    description: str | None
    """A description instead of the docstring."""
    icons: Sequence[Icon] | None
    meta: Mapping[str, Any] | None
    """`_meta` of the listed item."""
    tags: Names | None
    """Tags that `Server.disable` and `Server.enable` select items by."""
    enabled: bool | None
    """If False, the item is disabled until `Server.enable`. Callers can't tell it from a missing one."""
    visible: Callable[[Principal | None], bool] | None
    """``visible(principal)``: whether a caller sees the item. Other callers can't tell it from a missing one."""
    groups: Names | None
    """Groups of which a caller needs one, by the claim `groups`. Other callers can't tell it from a missing one."""


class MountOptions(TypedDict, total=False):
    """Options of `Server.mount`, for all items of the other server."""

    scopes: Names | None
    """The scopes that a caller needs, in addition to those of an item."""
    groups: Names | None
    """Groups of which a caller needs one. Other callers can't tell the items from missing ones."""
    tags: Names | None
    """Tags in addition to those of an item."""
    limit: str | None
    """Rate limit for each caller and tool that has none: ``10/minute``."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_named(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_text, cast("Iterable[Any]", value)))


def _is_json(value: Any) -> bool:
    if not _is_named(value):
        return False
    try:
        msgspec.json.encode(dict(value))
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset) and all(map(_is_text, cast("Iterable[Any]", value)))


MAX_COST = 1_000_000
MAX_SLOTS = 10_000
_RATE = re.compile(r"[1-9][0-9]{0,8} ?/ ?(second|minute|hour|day)")
_Rule = tuple[Callable[[Any], bool], str]
_TEXT = (_is_text, "a string")
_FLAG: _Rule = (lambda value: type(value) is bool, "True or False")
_JSON = (_is_json, "a dict with string keys and JSON-serializable values")
_SCHEMA = (is_object, "a JSON Schema as a dict")
MAX_TASK_TTL = 365 * 86400
"""Maximum lifetime of a task in seconds."""
_RULES: Mapping[str, _Rule] = {
    "name": _TEXT,
    "title": _TEXT,
    "description": _TEXT,
    "mime_type": _TEXT,
    "icons": (
        lambda value: (
            isinstance(value, list | tuple) and all(isinstance(each, Icon) for each in cast("Sequence[Any]", value))
        ),
        "a list of Icon",
    ),
    "meta": _JSON,
    "requires": (
        lambda value: _is_json(value) and all(isinstance(each, Mapping) for each in value.values()),
        "a dict of client capabilities, each with a dict of its required settings: {'sampling': {}}",
    ),
    "limit": (
        lambda value: isinstance(value, str) and bool(_RATE.fullmatch(value)),
        "a number and a unit: 10/minute, 5/second",
    ),
    "cost": (lambda value: type(value) in (int, float) and 0 <= value <= MAX_COST, f"a number up to {MAX_COST}"),
    "concurrency": (
        lambda value: type(value) is int and 1 <= value <= MAX_SLOTS,
        f"the maximum number of concurrent calls, a whole number from 1 to {MAX_SLOTS}",
    ),
    "scopes": (
        lambda value: _are_texts(value) and all(map(SCOPE.fullmatch, value)),
        "a list of scopes without spaces or quotes",
    ),
    "annotations": (lambda value: isinstance(value, Struct) or _is_named(value), "an annotations object or a dict"),
    "replay": _FLAG,
    "idempotency": (
        lambda value: isinstance(value, bool) or (isinstance(value, str) and bool(re.fullmatch(DURATION, value))),
        "True, False, or a time such as 30s, 10m, 2h, or 1d",
    ),
    "timeout": (
        lambda value: type(value) in (int, float) and value >= 0 and isfinite(value),
        "a number of seconds, or 0 for no limit",
    ),
    "size": (lambda value: type(value) is int and value >= 0, "a number of bytes"),
    "result_tokens": (lambda value: type(value) is int and value >= 0, "a number of tokens, or 0 for no limit"),
    "thread": _FLAG,
    "coerce": _FLAG,
    "task": (lambda value: value in ("allowed", "required"), "'allowed' or 'required'"),
    "task_ttl": (
        lambda value: type(value) in (int, float) and 0 < value <= MAX_TASK_TTL,
        f"a number of seconds up to {MAX_TASK_TTL:,}",
    ),
    "task_retry": _FLAG,
    "defer_task": _FLAG,
    "tags": (_are_texts, "a list of strings"),
    "groups": (_are_texts, "a list of groups"),
    "enabled": _FLAG,
    "visible": (
        lambda value: callable(value) and not inspect.iscoroutinefunction(value),
        "a plain function of the principal, not `async def`",
    ),
    "input_schema": _SCHEMA,
    "output_schema": _SCHEMA,
}
"""For each option, a check of the value, and a description of valid values."""
_ELSEWHERE = {
    "app": "Write `@apps.tool('ui://…')`, with apps = mcp.extend(Apps()).",
    "auth": "Write scopes=[…], or visible=… for a function of the principal.",
    "exclude_args": "Make the parameter a dependency: Annotated[T, Depends(function)].",
    "run_in_thread": "Write thread=…",
    "serializer": "Return ToolResult(content=[Text(…)]) from the function.",
    "structured_output": "Write output_schema=None, or return Text(…) for text alone.",
    "version": "An item has one version. Give the other one another name.",
    **dict.fromkeys(
        ("hidden", "hide"), "Write enabled=False, or visible=… for a function of the principal that returns False."
    ),
}
"""Option in other packages -> its replacement here."""
_TOOLS_ELSEWHERE = {
    **dict.fromkeys(("parameters", "params"), "input_schema"),
    **dict.fromkeys(("async", "blocking", "sync"), "thread"),
    "idempotent": "Write idempotency=True, or for a hint, annotations=ToolAnnotations(idempotent_hint=True).",
    "retry": "task_retry",
    "ttl": "task_ttl",
    **{
        name: f"Write annotations=ToolAnnotations({name}=True)."
        for name in ("read_only_hint", "destructive_hint", "idempotent_hint", "open_world_hint")
    },
}
"""The same for tools only, and names that mean the same as an option."""


def check_options(
    item: str, options: Mapping[str, Any], allowed: type, annotations: type[Struct] | None = None
) -> None:
    """Check that options exist and have valid values.

    Args:
        item: The item, for messages.
        options: The given options.
        allowed: A TypedDict with the valid names.
        annotations: The type of the annotations option.

    Raises:
        TypeError: An option is unknown or invalid. The message lists the allowed ones.
    """
    names: frozenset[str] = getattr(allowed, "__optional_keys__", frozenset())
    elsewhere = _ELSEWHERE | _TOOLS_ELSEWHERE if "input_schema" in names else _ELSEWHERE
    for option, value in options.items():
        if option not in names:
            hint = suggest_option(option, names, elsewhere)
            raise TypeError(f"{item}: there is no option {option!r}{hint}")
        right, what = _RULES[option]
        if value is not None and not right(value):
            raise TypeError(f"{item}: {option} must be {what}, not {value!r}.")
    given = options.get("annotations")
    if given is None or annotations is None:
        return
    if isinstance(given, Struct):
        if not isinstance(given, annotations):
            raise TypeError(f"{item}: annotations must be {annotations.__name__} or a dict, not {given!r}.")
        given = to_builtins(given)
    members = [field.encode_name for field in msgspec.structs.fields(annotations)]
    unknown = sorted(given.keys() - set(members))
    if unknown:
        raise TypeError(f"{item}: annotations have no {unknown[0]!r}; {suggest(unknown[0], members)}")
    try:
        msgspec.convert(given, annotations)
    except msgspec.ValidationError as error:
        raise TypeError(f"{item}: annotations: {error}.") from error
    changed = given.get("lastModified")
    if changed is not None and not _is_moment(changed):
        raise TypeError(
            f"{item}: annotations: lastModified must be an ISO 8601 time, YYYY-MM-DDThh:mm:ssZ, or a date, not "
            f"{changed!r}."
        )


def _is_moment(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return text.isascii()


def describe_item(head: Mapping[str, Any], docstring: str, labels: Mapping[str, Any], **more: Any) -> Json:
    """Return a description in the newest shape, without members that weren't given."""
    description = labels.get("description")
    annotations, icons, meta = labels.get("annotations"), labels.get("icons"), labels.get("meta")
    members: Json = {
        **head,
        "title": labels.get("title"),
        "description": description if description is not None else docstring or None,
        **more,
        "annotations": to_builtins(annotations) if annotations else None,
        "icons": [to_builtins(icon) for icon in icons] if icons else None,
        "_meta": dict(meta) if meta else None,
    }
    return {key: value for key, value in members.items() if value is not None}


_OTHER_STYLES = re.compile(r"^\s*(?:[:@]|--)", re.MULTILINE)


_KEYWORDS = re.compile(r"^(?:Keyword (?:Args|Arguments|Parameters)|Other Parameters):[ \t]*$", re.MULTILINE)
"""Sections that the parser doesn't know."""


def describe(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Return the docstring's text before its first section, and the description of each parameter.

    Google, NumPy, and Sphinx styles are supported, and line breaks are kept. Any other docstring is used in full as the
    description.
    """
    text = inspect.getdoc(function) or ""
    if "\n" not in text:
        return text, {}
    text = _KEYWORDS.sub("Params:", text)
    parser = import_module("docstring_parser")
    # Only Google style doesn't mark the beginning of a line.
    style = parser.Style.AUTO if _OTHER_STYLES.search(text) else parser.Style.GOOGLE
    try:
        found = parser.parse(text, style)
    except parser.ParseError:
        return text, {}
    parameters = {each.arg_name.lstrip("*"): each.description for each in found.params if each.description}
    return (found.description or "").strip(), parameters


HEADER_KEYWORD = "x-mcp-header"
"""Schema keyword that asks clients to repeat a parameter as ``Mcp-Param-<name>`` (MCP 2026-07-28, server/tools)."""

CONSTRAINTS = ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern")


def constraint_text(meta: Meta) -> str:
    """Return a constraint as it's written in a program: ``Field(ge=3)``."""
    said = ((name, getattr(meta, name)) for name in (*CONSTRAINTS, "title", "description"))
    return f"Field({', '.join(f'{name}={value!r}' for name, value in said if value is not None)})"


_LITERAL = "List the values in the type: Literal['a', 'b']."
_OPTIONAL = "Write the type as `T | None`, and give the parameter a default to make it optional."
_CONSTRAINTS_ELSEWHERE = {
    # JSON Schema, pydantic 1, Django, and zod, in this order
    **dict.fromkeys(("minimum", "min", "min_value", "gte", "nonnegative"), "ge"),
    **dict.fromkeys(("maximum", "max", "max_value", "lte", "nonpositive"), "le"),
    **dict.fromkeys(("exclusiveMinimum", "exclusive_minimum", "positive"), "gt"),
    **dict.fromkeys(("exclusiveMaximum", "exclusive_maximum", "negative"), "lt"),
    **dict.fromkeys(("multipleOf", "step", "step_size"), "multiple_of"),
    **dict.fromkeys(("minLength", "minItems", "min_items", "nonempty"), "min_length"),
    **dict.fromkeys(("maxLength", "maxItems", "max_items"), "max_length"),
    **dict.fromkeys(("regex", "regexp"), "pattern"),
    **dict.fromkeys(("help_text", "help", "describe", "doc"), "description"),
    **dict.fromkeys(("verbose_name", "label"), "title"),
    "example": "examples",
    "json_schema_extra": "extra",
    **dict.fromkeys(("enum", "choices", "oneOf", "const"), _LITERAL),
    **dict.fromkeys(("null", "nullable", "blank", "optional", "allow_none", "required"), _OPTIONAL),
    **dict.fromkeys(("alias", "validation_alias"), "Name the parameter as clients send it."),
    "default_factory": "Write default=…, or set the value in the function if it's None.",
    "format": "Write a type with this format, such as datetime, date, UUID, or Decimal, or a pattern.",
    **dict.fromkeys(("validate", "validator", "validators", "refine"), "Check the value in the function: ToolError."),
    **dict.fromkeys(("length", "len"), "Write min_length=… and max_length=…"),
}
"""Names for the options of `Field` in other packages."""


@partial(suggest_keywords, elsewhere=_CONSTRAINTS_ELSEWHERE)
def Field(  # noqa: N802, PLR0913 - read as a type: `Annotated[int, Field(ge=1)]`; one argument for each keyword
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    multiple_of: float | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    pattern: str | None = None,
    title: str | None = None,
    description: str | None = None,
    examples: list[Any] | None = None,
    default: Any = NODEFAULT,
    header: str | None = None,
    extra: Json | None = None,
) -> Any:  # also stands in for a default, of a parameter of any type
    """Describe and constrain a value: ``copies: Annotated[int, Field(ge=1, le=9)] = 1``.

    Args:
        ge: The minimum, inclusive.
        gt: The minimum, exclusive.
        le: The maximum, inclusive.
        lt: The maximum, exclusive.
        multiple_of: A divisor of the number.
        min_length: The minimum length of a string or collection.
        max_length: The maximum length of a string or collection.
        pattern: A regular expression that must match somewhere in the string.
        title: A short name for display.
        description: The meaning of the value, for users and models.
        examples: Example values.
        default: The default of a parameter, as an alternative to ``= value``.
        header: Also send this parameter as the HTTP header ``Mcp-Param-<header>``.
        extra: Further JSON Schema keywords, for example ``{"format": "email"}``.

    Raises:
        TypeError: A bound has the wrong type.
        ValueError: Bounds contradict each other, or the pattern isn't a regular expression.

    Example:
        >>> @mcp.tool
        ... def order(copies: Annotated[int, Field(ge=1, le=9, description="How many")] = 1) -> str:
        ...     return f"{copies} ordered"
    """
    keywords = dict(extra or {})
    if header is not None:
        keywords[HEADER_KEYWORD] = header
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"Field: the pattern {pattern!r} isn't a regular expression: {error}.") from error
    for low, high in ((ge, le), (gt, lt), (ge, lt), (gt, le), (min_length, max_length)):
        if low is not None and high is not None and low > high:
            raise ValueError(f"Field: no value lies between {low} and {high}.")
    build: Any = Meta  # the overloads omit options that this function checks itself
    return build(
        ge=ge,
        gt=gt,
        le=le,
        lt=lt,
        multiple_of=multiple_of,
        min_length=min_length,
        max_length=max_length,
        pattern=pattern,
        title=title,
        description=description,
        examples=examples,
        extra_json_schema=keywords or None,
        extra=None if default is NODEFAULT else {"default": default},
    )
