"""The files of OpenAPI documents: JSON or YAML, references to other files, and version 2.0 as 3.0.

A document may come from the network, so its depth, values, and files are limited, and so is what it can refer to:
only visible JSON and YAML files below its own folder that aren't configurations or accounts.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urldefrag, urlsplit
from urllib.request import url2pathname

import msgspec

from millstream._gateway.apis.reply import MAX_DEPTH
from millstream._gateway.apis.request import items_of
from millstream._protocol.jsonrpc import exceeds_limits
from millstream._protocol.uri import join_url, split_url
from millstream._yaml import read_yaml
from millstream.client._applications import SERVER_TABLES
from millstream.files import find_file, open_file
from millstream.protocol import Json, encode, is_array, is_object, members

MAX_BYTES = 64 * 1024 * 1024
"""Maximum size of a document's files together, in bytes."""
_MAX_FILES = 5000
_MAX_VALUES = 1_000_000
"""Maximum values in a YAML file. An alias counts as the values that it repeats."""
_FILES = "x-millstream-files"
"""Document member that contains the other files, by address."""
_SUFFIXES = (".json", ".yaml", ".yml")
"""Ends of the names of files that a document can refer to."""
_VISIBLE = re.compile(r"(?:/[^./\\;?#%\x00-\x1f\x7f][^/\\;?#%\x00-\x1f\x7f]*+)+")
"""Matches a decoded path without hidden names, and without characters that servers interpret differently."""
_MEMBER = re.compile(rb"(?m)^(?:[^#\s][^\n]*:|[\[{-])")
"""Matches a line that begins a member or a list in YAML."""
_TABLES = (*SERVER_TABLES, "tokens", "registrations")
"""Members of configuration files and token files that contain entries by name."""
_ENTRY = ("access_token", "args", "client_id", "command", "httpUrl", "serverUrl", "url")
"""Members of these entries. In a schema, they would be objects."""
_RECORD = ("hash", "kty", "password")
"""Members of the records in key files, account files, and key sets."""


def parse_file(data: bytes) -> Any:
    """Return the value of a file in JSON or YAML.

    Raises:
        ValueError: It's neither, or is too deep or large.
        MissingExtra: It's YAML, and the extra isn't installed.
    """
    data = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not data:
        raise ValueError("The document is empty.")
    if data[:1] == b"<":
        raise ValueError(
            "The document is a web page or XML. Use the address of the JSON or YAML, such as /openapi.json."
        )
    if data[:1] == b"{":
        if reason := exceeds_limits(data, MAX_DEPTH):
            raise ValueError(f"The document has {reason}.")
        try:
            return msgspec.json.decode(data)
        except msgspec.DecodeError as exc:
            raise ValueError(f"The document isn't JSON ({exc}).") from exc
    if not _MEMBER.search(data):
        raise ValueError("The document isn't JSON or YAML.")
    try:
        what = "Reading an OpenAPI document in YAML"
        found = read_yaml(data, what=what, extra="yaml", max_depth=MAX_DEPTH, allow_aliases=True)
    except ValueError as exc:
        raise ValueError(f"The document {exc}.") from exc
    return _as_json(found, MAX_DEPTH, [_MAX_VALUES])


def _as_json(value: Any, depth: int, budget: list[int]) -> Any:
    """Return a copy of a value with text as names, and without merge keys (``<<``).

    Raises:
        ValueError: It's too deep, or has too many values.
    """
    budget[0] -= 1
    if budget[0] < 0 or depth < 0:
        raise ValueError(
            f"The document is nested deeper than {MAX_DEPTH} levels or has more than {_MAX_VALUES:,} values."
        )
    if is_array(value):
        return [_as_json(each, depth - 1, budget) for each in value]
    if not is_object(value):  # values of other types, which tags declare, may repeat aliases without end
        return value if isinstance(value, str | int | float | bool | None) else None
    copied: Json = {}
    merged: Any = value.get("<<")
    for each in filter(is_object, merged if is_array(merged) else (merged,)):
        copied = _as_json(each, depth - 1, budget) | copied
    pairs = cast("Iterable[tuple[object, Any]]", value.items())
    for key, each in pairs:
        if key != "<<":
            copied[key if isinstance(key, str) else encode(key).decode()] = _as_json(each, depth - 1, budget)
    return copied


class DocumentFiles:
    """A document's files, added when they're needed.

    Example:
        ``while files.wanted: files.add(read_file(files.wanted))``
    """

    def __init__(self, base: str, max_bytes: int = MAX_BYTES) -> None:
        self.wanted: str = base
        """Address of the next file to add, or empty if the document is complete."""
        self._base, self._pending, self._values = base, list[str](), dict[str, Any]()
        self._digest, self._bytes_left, self._max_bytes = sha256(), max_bytes, max_bytes
        self.refused: dict[str, str] = {}
        """Address of each file that isn't part of the document, and the reason. References to it are dangling."""

    @property
    def digest(self) -> bytes:
        """Digest of all files."""
        return self._digest.digest()

    @property
    def document(self) -> Any:
        """The document, which contains the other files."""
        others = {address: value for address, value in self._values.items() if address != self._base}
        root = self._values[self._base]
        return {**root, _FILES: others} if others else root

    def add(self, data: bytes) -> None:
        """Add the wanted file, or refuse it if it isn't part of a document.

        Raises:
            ValueError: It's the document itself and can't be used, or it's too large.
            MissingExtra: It's YAML, and the extra isn't installed.
        """
        address = self.wanted
        self._digest.update(data)
        self._bytes_left -= len(data)
        if self._bytes_left < 0 or len(self._values) > _MAX_FILES:
            raise ValueError(
                f"The document has more than {self._max_bytes:,} bytes or {_MAX_FILES:,} files. To allow more bytes, "
                "set max_catalog_bytes."
            )
        try:
            value = parse_file(data)
        except ValueError as exc:
            if address == self._base:
                raise
            self.refuse(str(exc))
            return
        if address != self._base and _is_private(value):
            self.refuse("it's a configuration or account file")
            return
        self._values[address] = value
        for holder, target, fragment in list(_references(value, address)):
            if target == self._base:
                holder["$ref"] = f"#{fragment}"
                continue
            if target not in self._values and target not in self._pending:
                self._pending.append(target)
            key = target.replace("~", "~0").replace("/", "~1").replace("%", "%25")
            holder["$ref"] = f"#/{_FILES}/{key}{fragment}"
        self.wanted = self._pending.pop() if self._pending else ""

    def refuse(self, reason: str) -> None:
        """Leave out the wanted file.

        Args:
            reason: End of a sentence about the file, for the log.
        """
        self.refused[self.wanted], self._values[self.wanted] = reason, None
        self.wanted = self._pending.pop() if self._pending else ""


def read_files(path: str | Path, max_bytes: int = MAX_BYTES) -> DocumentFiles:
    """Return a document from a file, including the files below its folder that it refers to.

    Raises:
        ValueError: It can't be read. The message gives the reason.
        MissingExtra: It's YAML, and the extra isn't installed.
    """
    path = Path(path).resolve()
    files = DocumentFiles(path.as_uri(), max_bytes)
    try:
        with path.open("rb") as file:
            files.add(file.read(MAX_BYTES + 1))
    except OSError as exc:
        hint = "Check its path. To read it from a URL, write mcp.upstream(name, openapi=URL)."
        raise ValueError(f"The document {path} can't be read: {exc.strerror}. {hint}") from exc
    while files.wanted:
        try:
            data = _read_below(files.wanted, path.parent)
        except OSError as exc:
            files.refuse(f"it can't be read: {exc.strerror}")
            continue
        if data is None:
            files.refuse("it isn't a visible .json, .yaml, or .yml file below the document's folder")
        else:
            files.add(data)
    return files


def _read_below(address: str, folder: Path) -> bytes | None:
    """Return the file at an address if a document in a folder can refer to it, or None."""
    parts = urlsplit(address)
    if parts.scheme != "file" or parts.netloc or parts.query:
        return None
    path = find_file(folder, Path(url2pathname(parts.path)))
    file = open_file(folder, path) if path is not None and path.suffix.lower() in _SUFFIXES else None
    if file is None:
        return None
    with file:
        return file.read(MAX_BYTES + 1)


def is_document_below(target: str, folder: str) -> bool:
    """Return whether the path and query of a URL lead to a JSON or YAML file below a folder.

    Args:
        target: Path and query, in any spelling.
        folder: Path, with a slash at its end.
    """
    rest = unquote("/" + target.removeprefix(folder)) if target.startswith(folder) else ""
    return _VISIBLE.fullmatch(rest) is not None and rest.lower().endswith(_SUFFIXES)


def _is_private(value: Any) -> bool:
    """Return whether a value is the content of a file with MCP servers, tokens, keys, or users."""
    if not is_object(value):
        return False
    entries = [each for name in _TABLES for each in members(value.get(name)).values() if is_object(each)]
    records = [each for name in ("keys", "users") for each in items_of(value.get(name)) if is_object(each)]
    return (
        any(isinstance(each.get(name), str | list) for each in entries for name in _ENTRY)
        or any(is_object(each.get(name)) for each in entries for name in ("env", "headers"))
        or any(isinstance(members(each.get("command")).get("path"), str) for each in entries)
        or any(isinstance(each.get(name), str) for each in records for name in _RECORD)
    )


def _references(node: Any, base: str) -> Iterator[tuple[Json, str, str]]:
    """Yield the holder of each reference, the address of the file that it leads to, and the fragment."""
    pending = [node]
    while pending:
        each = pending.pop()
        if is_object(each):
            if isinstance(reference := each.get("$ref"), str):
                with suppress(ValueError):  # it's dangling if it isn't a URL
                    split_url(reference)
                    address, fragment = urldefrag(reference)
                    yield each, join_url(base, address) if address else base, fragment
            pending += each.values()
        elif is_array(each):
            pending += each


# Version 2.0

COLLECTIONS: Mapping[object, Json] = {
    "csv": {"explode": False},
    "multi": {"style": "form", "explode": True},
    "pipes": {"style": "pipeDelimited", "explode": False},
    "ssv": {"style": "spaceDelimited", "explode": False},
    "tsv": {"style": "tabDelimited", "explode": False},
}
"""`collectionFormat` -> style of version 3."""
_NOT_SCHEMA = frozenset(("name", "in", "required", "deprecated", "allowEmptyValue", "collectionFormat"))


def upgrade(spec: Json) -> Json:
    """Return a document of version 2.0 with the servers and API keys of 3.0. Its operations aren't changed."""
    scheme = "https" if "https" in (schemes := items_of(spec.get("schemes")) or ["https"]) else schemes[0]
    base = str(spec.get("basePath") or "/")
    server = f"{scheme}://{spec['host']}{base}" if spec.get("host") else base
    components = {"securitySchemes": members(spec.get("securityDefinitions"))}
    return {**spec, "openapi": "3.0.3", "servers": [{"url": server}], "components": components}


def upgrade_schema(parameter: Json) -> Json:
    """Return the schema in a parameter."""
    schema = {key: each for key, each in parameter.items() if key not in _NOT_SCHEMA}
    return {**schema, "type": "string", "format": "binary"} if schema.get("type") == "file" else schema
