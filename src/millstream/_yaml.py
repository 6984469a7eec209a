"""YAML 1.2 as JSON values.

PyYAML parses it with the types of YAML 1.2's core schema. The types of YAML 1.1, its default, would read ``on`` as
true, and dates and times as types other than text.
"""

import re
from functools import cache
from importlib import import_module
from typing import Any

from millstream._protocol.errors import MissingExtra

_CORE = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+0123456789."),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.nan|\.NaN|\.NAN", "-+."),
)
"""Types of plain text (YAML 1.2.2 §10.3), the expression for each, and how it begins."""


class YamlError(ValueError):
    """The text isn't YAML, or isn't allowed here. The message is the end of a sentence: "it has an alias"."""


def read_yaml(text: str | bytes, *, what: str, extra: str, max_depth: int, allow_aliases: bool = False) -> Any:
    """Return the value of a YAML document.

    Args:
        text: The document.
        what: The activity, for an error: "Reading skills".
        extra: The extra that contains PyYAML, for an error.
        max_depth: Maximum depth of its values.
        allow_aliases: Whether it may have aliases. The same value is then in several places of the result, perhaps
            in itself.

    Raises:
        YamlError: It isn't YAML, is too deep, or has an alias that isn't allowed.
        MissingExtra: PyYAML isn't installed.
    """
    try:
        yaml: Any = import_module("yaml")  # an extra
    except ImportError as exc:
        raise MissingExtra(what, extra) from exc
    loader, depth = _loader(), 0
    try:
        # Construction is recursive, so the depth is checked first.
        for event in yaml.parse(text, loader):
            if isinstance(event, yaml.AliasEvent) and not allow_aliases:
                raise YamlError("has a YAML alias, which isn't supported")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > max_depth:
                raise YamlError(f"is nested more than {max_depth} levels deep")
        return yaml.load(text, loader)
    except YamlError:
        raise
    except Exception as exc:  # a tag whose value doesn't fit raises whatever its constructor raises
        raise YamlError(f"isn't YAML: {' '.join(str(exc).split())[:200]}") from exc


@cache
def _loader() -> Any:
    yaml: Any = import_module("yaml")
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader: Any = type("CoreSchemaLoader", (base,), {"yaml_implicit_resolvers": {}})
    for name, pattern, first in _CORE:
        letters = [*first, ""] if name == "null" else list(first)
        loader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(f"(?:{pattern})$"), letters)
    loader.add_constructor("tag:yaml.org,2002:int", _read_integer)
    return loader


def _read_integer(loader: Any, node: Any) -> int:
    text: str = loader.construct_scalar(node)
    number = int(text, 0 if text[:2] in ("0o", "0x") else 10)
    str(number)  # raises ValueError if it has more digits than Python, and so JSON, can write
    return number
