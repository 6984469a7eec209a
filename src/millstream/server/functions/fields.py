"""`Field`: constraints and texts for a parameter or a field, written inside ``Annotated``.

It is a `msgspec.Meta`, so it also works in the dataclasses, Structs and TypedDicts that parameters are made of, and
msgspec checks it while it decodes.
"""

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
        ValueError: for bounds that contradict each other.
    """
    keywords = dict(extra or {})
    if header is not None:
        keywords[HEADER_KEYWORD] = header
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
