"""`Field`: constraints and texts of a parameter or field, inside ``Annotated``.

It's a `msgspec.Meta`, so it also works in dataclasses, Structs, and TypedDicts, and msgspec validates it while
decoding.
"""

import re
from typing import Any

from msgspec import NODEFAULT, Meta

from millstream._protocol.errors import suggest_keywords

HEADER_KEYWORD = "x-mcp-header"
"""Schema keyword that asks clients to repeat a parameter as ``Mcp-Param-<name>`` (MCP 2026-07-28, server/tools)."""

CONSTRAINTS = ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern")


def constraint_text(meta: Meta) -> str:
    """Return a constraint as it's written in a program: ``Field(ge=3)``."""
    said = {name: getattr(meta, name) for name in (*CONSTRAINTS, "title", "description")}
    return f"Field({', '.join(f'{name}={value!r}' for name, value in said.items() if value is not None)})"


@suggest_keywords
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
    extra: dict[str, Any] | None = None,
) -> Any:
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
    if pattern is not None:
        _check_pattern(pattern)
    for low, high in ((ge, le), (gt, lt), (ge, lt), (gt, le), (min_length, max_length)):
        if low is not None and high is not None and low > high:
            raise ValueError(f"Field: no value lies between {low} and {high}")
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


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"Field: the pattern {pattern!r} isn't a regular expression: {error}") from error
