"""`Field`: constraints and texts for a parameter or a field, written inside ``Annotated``.

It is a `msgspec.Meta`, so it also works in the dataclasses, Structs and TypedDicts that parameters are made of, and
msgspec checks it while it decodes.
"""

import re
from typing import Any

from msgspec import NODEFAULT, Meta

HEADER_KEYWORD = "x-mcp-header"
"""Schema keyword that tells clients to repeat a parameter as ``Mcp-Param-<name>`` (MCP 2026-07-28, server/tools)."""


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
        ge, gt, le, lt, multiple_of: bounds of a number.
        min_length, max_length: bounds of a string, or of a collection.
        pattern: a regular expression that a string must contain a match of.
        title, description, examples: texts for people and models.
        default: of a parameter, where ``= value`` is not convenient.
        header: also send this parameter as the HTTP header ``Mcp-Param-<header>``.
        extra: further JSON Schema keywords, for example ``{"format": "email"}``.

    Raises:
        TypeError, ValueError: for bounds that make no sense together, and a pattern that is none.

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
            raise ValueError(f"Field: nothing lies between {low} and {high}")
    build: Any = Meta  # its overloads leave out what it checks itself
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
        raise ValueError(f"Field: the pattern {pattern!r} is no regular expression: {error}") from error
