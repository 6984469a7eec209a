"""Set, read, and remove one entry of a TOML or YAML document, preserving comments and style.

tomlkit and ruamel.yaml are in the extra ``install``, because most applications use JSON.
"""

import io
import tomllib
from collections.abc import MutableMapping, Sequence
from itertools import pairwise
from typing import Any, cast

from millstream._app.server_process.errors import CommandError
from millstream._jsonc import JsonSyntaxError
from millstream._protocol.json_schema import is_array

_BOM = "\ufeff"


def toml_entry(text: str, path: Sequence[str]) -> Any:
    """Return the value at the path, or None.

    Raises:
        JsonSyntaxError: the text isn't TOML.
    """
    return _value_at(_read_toml(text), path)


def put_toml(text: str, path: Sequence[str], value: Any) -> str:
    """Return the text with the value at the path.

    Raises:
        JsonSyntaxError: the text isn't TOML, or a part of the path isn't a table.
    """
    wanted = _read_toml(text)
    _parent(wanted, path, dict)[path[-1]] = value
    tomlkit = _load("tomlkit")
    document = tomlkit.parse(text.removeprefix(_BOM))
    parent = document
    for name in path[:-1]:
        if name not in parent:
            parent[name] = tomlkit.table(is_super_table=True)
        parent = parent[name]
    comments = _trailing_comments(parent.get(path[-1]))
    parent[path[-1]] = value
    for each in comments:
        parent[path[-1]].add(each)
    return _checked_toml(text, tomlkit.dumps(document), wanted, path)


def remove_toml(text: str, path: Sequence[str]) -> str:
    """Return the text without the value at the path.

    Raises:
        JsonSyntaxError: the text isn't TOML.
    """
    wanted = _read_toml(text)
    if _value_at(wanted, path) is None:
        return text
    tomlkit = _load("tomlkit")
    document = tomlkit.parse(text.removeprefix(_BOM))
    for level in (wanted, document):
        del _parent(level, path, dict)[path[-1]]
        if len(path) > 1 and not _parent(level, path, dict):
            del _parent(level, path[:-1], dict)[path[-2]]
    return _checked_toml(text, tomlkit.dumps(document), wanted, path)


def _read_toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text.removeprefix(_BOM))
    except tomllib.TOMLDecodeError as exc:
        raise JsonSyntaxError(str(exc)) from exc


def _checked_toml(before: str, after: str, wanted: dict[str, Any], path: Sequence[str]) -> str:
    """Check that the result is the intended change, in case a library damages it."""
    try:
        found = tomllib.loads(after)
    except tomllib.TOMLDecodeError:
        found = None
    missing = _comments(before) - _comments(after)
    if found != wanted or missing:
        raise JsonSyntaxError(f"{'.'.join(path)} has a form that can't be changed safely")
    return _BOM + after if before.startswith(_BOM) else after


def _trailing_comments(table: Any) -> list[Any]:
    """Return the comments at the end of a table. tomlkit attaches them to it, although they precede the next one."""
    body: list[tuple[Any, Any]] = table.value.body if hasattr(table, "value") and hasattr(table.value, "body") else []
    if not body:
        return []
    end = len(body)
    while end and body[end - 1][0] is None:
        end -= 1
    if end == len(body):
        return _trailing_comments(body[-1][1])
    return [item for _, item in body[end:]]


def _comments(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if line.lstrip().startswith("#")}


def yaml_entry(text: str, path: Sequence[str]) -> Any:
    """Return the value at the path, or None.

    Raises:
        JsonSyntaxError: the text isn't YAML.
    """
    return _plain(_value_at(_read_yaml(text), path))


def put_yaml(text: str, path: Sequence[str], value: Any) -> str:
    """Return the text with the value at the path.

    Raises:
        JsonSyntaxError: the text isn't YAML, or a part of the path isn't a mapping.
    """
    document = _read_yaml(text)
    parent = _parent(document, path, _load("ruamel.yaml.comments").CommentedMap)
    parent[path[-1]] = value
    return _write_yaml(document, text)


def remove_yaml(text: str, path: Sequence[str]) -> str:
    """Return the text without the value at the path.

    Raises:
        JsonSyntaxError: the text isn't YAML.
    """
    document = _read_yaml(text)
    if _value_at(document, path) is None:
        return text
    del _parent(document, path, dict)[path[-1]]
    return _write_yaml(document, text)


def _read_yaml(text: str) -> Any:
    yaml = _load("ruamel.yaml")
    try:
        document = _round_trip(text).load(text.removeprefix(_BOM))
    except yaml.error.YAMLError as exc:
        raise JsonSyntaxError(" ".join(str(exc).split())) from exc
    if document is None:
        return _load("ruamel.yaml.comments").CommentedMap()
    if not isinstance(document, MutableMapping):
        raise JsonSyntaxError("the document isn't a mapping")
    return cast("MutableMapping[str, Any]", document)


def _write_yaml(document: Any, before: str) -> str:
    out = io.StringIO()
    _round_trip(before).dump(document, out)
    text = out.getvalue()
    if "\r\n" in before:
        text = text.replace("\n", "\r\n")
    return _BOM + text if before.startswith(_BOM) else text


def _round_trip(text: str) -> Any:
    """Return a parser and emitter that preserves the indentation of the text."""
    yaml = _load("ruamel.yaml").YAML()
    yaml.preserve_quotes = True
    yaml.width = 2**31
    indent = next((len(line) - len(line.lstrip()) for line in text.splitlines() if line.startswith(" ")), 2)
    dashes = next((line for line in text.splitlines() if line.lstrip().startswith("- ")), "")
    offset = indent if dashes.startswith(" ") and _sequence_is_indented(text) else 0
    yaml.indent(mapping=indent, sequence=offset + 2, offset=offset)
    return yaml


def _sequence_is_indented(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for above, line in pairwise(lines):
        if line.lstrip().startswith("- ") and not above.lstrip().startswith("- "):
            return len(line) - len(line.lstrip()) > len(above) - len(above.lstrip())
    return False


def _value_at(document: Any, path: Sequence[str]) -> Any:
    found: Any = document
    for name in path:
        if not isinstance(found, MutableMapping) or name not in found:
            return None
        found = cast("MutableMapping[str, Any]", found)[name]
    return found


def _parent(document: Any, path: Sequence[str], make: Any) -> Any:
    """Return the mapping that contains the last name of the path, creating missing mappings."""
    found: Any = document
    for name in path[:-1]:
        if name not in found or found[name] is None:
            found[name] = make()
        below: Any = found[name]
        if not isinstance(below, MutableMapping):
            raise JsonSyntaxError(f"{name} isn't a mapping")
        found = cast("MutableMapping[str, Any]", below)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, MutableMapping):
        return {name: _plain(each) for name, each in cast("MutableMapping[str, Any]", value).items()}
    if is_array(value):
        return [_plain(each) for each in value]
    return value


def _load(name: str) -> Any:
    """Import a library of the extra, or raise an error that says how to install it."""
    from importlib import import_module  # noqa: PLC0415

    try:
        return import_module(name)
    except ImportError as exc:
        raise CommandError(
            "This application uses TOML or YAML, which requires an extra package.",
            fix="pip install 'millstream[install]'",
        ) from exc
