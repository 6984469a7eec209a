"""Regular expressions for text from strangers. Rust's matcher takes linear time for each that it supports."""

import re
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module

from millstream._protocol.json_schema import OUR_PATTERNS, Schema
from millstream._server.functions.parameters import PatternError

_INSTEAD = "Write it without lookahead, lookbehind, and backreferences"


@lru_cache(256)
def matcher_of(pattern: str) -> Callable[[str], bool]:
    """Return a function that tries a pattern in linear time.

    Raises:
        PatternError: That's impossible. The error suggests a replacement.
    """
    core = import_module("pydantic_core")
    try:
        validator = core.SchemaValidator(core.core_schema.str_schema(pattern=pattern))
    except core.SchemaError as error:
        raise pattern_error(error) from error
    matches: Callable[[str], bool] = validator.isinstance_python
    return matches


def pattern_error(error: Exception) -> PatternError:
    """Return the error for a pattern that the matcher refuses, from the matcher's error."""
    found = re.search(r"regex parse error:\n +(.*)", str(error))
    return PatternError(
        f"{f'the pattern {found[1]!r}' if found else 'a pattern'} can't be matched in linear time. {_INSTEAD}"
    )


def check_no_pattern(node: Schema) -> None:
    """Refuse a pattern in the schema of a Struct, because msgspec matches it with Python.

    Raises:
        PatternError: There's one. The error suggests a replacement.
    """
    pattern = node.get("pattern")
    if isinstance(pattern, str) and pattern not in OUR_PATTERNS:
        raise PatternError(
            f"msgspec matches the pattern {pattern!r} in a Struct with Python, which can take very long. "
            "Use a dataclass instead of the Struct"
        )


def search(pattern: str, text: str) -> bool:
    """Return whether a checked pattern matches anywhere in a text."""
    return matcher_of(pattern)(text)
