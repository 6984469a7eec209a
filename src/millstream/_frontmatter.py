"""YAML frontmatter of Markdown files such as `SKILL.md`, as JSON values.

The text may come from the network, so its size is limited, and aliases, which could
expand a small text to a huge value, are rejected.
"""

import math
import re
from typing import Any, cast

from millstream._protocol.json_schema import is_object
from millstream._yaml import YamlError, read_yaml

MAX_BYTES = 16 * 1024
_MAX_DEPTH = 32
_BLOCK = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


class FrontmatterError(ValueError):
    """The text has no valid frontmatter. The message describes the problem.

    Example:
        ``except FrontmatterError as error: print(f"{path}: {error}")``
    """


def read_frontmatter(text: str) -> dict[str, Any]:
    """Return the frontmatter of a document as JSON values. Dates stay as they're written.

    Args:
        text: A Markdown file that begins with YAML between two lines of ``---``, such as a `SKILL.md`. The YAML has at
            most 16 KiB.

    Raises:
        FrontmatterError: There is none, or it's not an object of JSON values.
        MissingExtra: The extra ``skills`` isn't installed.

    Example:
        ``read_frontmatter(Path("SKILL.md").read_text("utf-8"))["description"]``
    """
    found = _BLOCK.match(text)
    if found is None:
        raise FrontmatterError("it doesn't begin with YAML between two lines of ---")
    raw = found[1]
    if len(raw.encode()) > MAX_BYTES:
        raise FrontmatterError(f"its frontmatter has more than {MAX_BYTES} bytes")
    try:
        value = read_yaml(raw, what="Reading the frontmatter of skills", extra="skills", max_depth=_MAX_DEPTH)
    except YamlError as exc:
        raise FrontmatterError(f"its frontmatter {exc}") from exc
    if not is_object(value):
        raise FrontmatterError("its frontmatter isn't a YAML mapping")
    _check(value)
    return value


def _check(value: Any) -> None:
    if isinstance(value, dict):
        for name, inner in cast("dict[object, object]", value).items():
            if not isinstance(name, str):
                raise FrontmatterError(f"its frontmatter has the key {name!r}, which isn't a string")
            _check(inner)
    elif isinstance(value, list):
        for inner in cast("list[object]", value):
            _check(inner)
    elif not isinstance(value, str | int | None) and not (isinstance(value, float) and math.isfinite(value)):
        raise FrontmatterError(f"its frontmatter has a value that JSON can't represent: {value!r}")
