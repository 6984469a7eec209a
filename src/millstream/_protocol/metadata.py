"""Request metadata other than the parameters: `_meta`, and ``Mcp-Param-*`` headers.

`_meta` has the per-request envelope of 2026-07-28, progress tokens, and client capabilities. The specification defines
the envelope's keys: https://modelcontextprotocol.io/specification/2026-07-28/basic.

``x-mcp-header`` repeats tool arguments in ``Mcp-Param-*`` headers (MCP 2026-07-28, server/tools). This module finds and
validates annotations in an input schema, encodes header values with the Base64 sentinel, and compares headers with
arguments. Schemas are plain dicts, and headers a mapping with lower-case names. `admission` decides which requests are
checked.
"""

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, cast, get_args

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from millstream._protocol.errors import HEADER_MISMATCH, ProtocolError
from millstream._protocol.json_schema import children, is_array, is_object, members, value_at
from millstream._protocol.jsonrpc import MAX_ID, Json, decode_object, decoder

TASKS = "io.modelcontextprotocol/tasks"
"""The identifier of the tasks extension."""
EVENTS = "io.modelcontextprotocol/events"
"""The identifier of the events extension."""
VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"
CLIENT_KEY = "io.modelcontextprotocol/clientInfo"
LOG_LEVEL_KEY = "io.modelcontextprotocol/logLevel"
SERVER_KEY = "io.modelcontextprotocol/serverInfo"
ORIGIN_KEY = "millstream.gateway/upstream"
"""`_meta` member of listed items and read resources: the names of the upstream and of upstreams behind it."""
SUBSCRIPTION_KEY = "io.modelcontextprotocol/subscriptionId"
"""`_meta` member of a notification: the id of the request that opened the stream."""

LogLevel = Literal["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"]
LOG_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)
"""RFC 5424 severities, from least to most severe."""

ProgressToken = int | Annotated[str, Meta(max_length=MAX_ID)]
"""Bounded like an id, because every progress notification repeats it."""


class Implementation(Struct, frozen=True, omit_defaults=True, rename="camel", gc=False):
    """The name and version of a client or server. For display only: never base a decision on them.

    Example:
        ``Implementation("shop", "1.0")``
    """

    name: str = ""
    version: str = ""
    title: str | None = None
    description: str | None = None
    website_url: str | None = None


MAX_DISPLAYED = 256
"""Maximum number of characters kept of a client's name and version."""
META_NAMES = {
    "version": VERSION_KEY,
    "capabilities": CAPABILITIES_KEY,
    "client": CLIENT_KEY,
    "log_level": LOG_LEVEL_KEY,
    "token": "progressToken",
}
"""Field of a struct for `_meta` -> member."""


class RequestMeta(Struct, gc=False, rename=META_NAMES):
    """The members of a request's `_meta` that a server reads."""

    version: str | UnsetType = UNSET
    capabilities: Raw | UnsetType = UNSET
    """Decoded by `read_capabilities`."""
    client: Implementation | UnsetType = UNSET
    log_level: str | UnsetType = UNSET
    token: ProgressToken | UnsetType = UNSET

    def read_client(self) -> "ClientInfo":
        """Return the client's description of itself.

        Raises:
            msgspec.DecodeError: The capabilities aren't an object.
        """
        capabilities = {} if self.capabilities is UNSET else read_capabilities(self.capabilities)
        if self.client is UNSET:
            return ClientInfo(capabilities)
        return ClientInfo(capabilities, self.client.name[:MAX_DISPLAYED], self.client.version[:MAX_DISPLAYED])


class ParamsWithMeta(Struct, gc=False, rename={"meta": "_meta"}):
    """`params` with the members of `_meta` that a server reads."""

    meta: RequestMeta = msgspec.field(default_factory=RequestMeta)


class LooseMeta(Struct, frozen=True, gc=False, rename=META_NAMES):
    """The members that distinguish the eras, and the progress token, of any type."""

    version: Raw | UnsetType = UNSET
    capabilities: Raw | UnsetType = UNSET
    token: Raw | UnsetType = UNSET


NO_META = LooseMeta()


class LooseParams(Struct, gc=False, rename={"meta": "_meta"}):
    """`params`, decoded only down to `_meta`."""

    meta: LooseMeta = NO_META


class ClientInfo(Struct, frozen=True, gc=False):
    """The client's description of itself: declared capabilities, and ``call.client.name`` and version for display."""

    capabilities: Mapping[str, Any] = {}
    name: str = ""
    version: str = ""

    @property
    def extensions(self) -> Json:
        """Return the settings of each extension that the client declared, by identifier."""
        return members(self.capabilities.get("extensions"))


CLIENT_CAPABILITIES: Mapping[str, frozenset[str] | None] = {
    "elicitation": frozenset(("form", "url")),
    "experimental": None,
    "extensions": None,
    "roots": frozenset(("listChanged",)),
    "sampling": frozenset(("context", "tools")),
    "tasks": frozenset(("cancel", "list", "requests")),
}
"""Capabilities that the revisions define, each with its settings, or None if the settings are open. Clients can declare
other capabilities (MCP 2026-07-28, ClientCapabilities).
"""


def declares(capabilities: Mapping[str, Any], required: Mapping[str, Any]) -> bool:
    """Return whether declared client capabilities cover the required ones. Both are ClientCapabilities objects.

    Settings that aren't objects must be equal. A list must contain every required item. An elicitation capability
    without modes means form mode (MCP 2025-11-25, client/elicitation).

    Args:
        capabilities: What the client declared.
        required: What a feature needs.

    Example:
        ``declares(client.capabilities, {"elicitation": {}})``
    """
    for name, inner in required.items():
        have: Any = capabilities.get(name)
        if not isinstance(inner, Mapping):
            if not _holds(have, inner):
                return False
            continue
        if not isinstance(have, Mapping):
            return False
        if name == "elicitation" and "form" in inner and "url" not in have:
            continue
        if not declares(cast("Mapping[str, Any]", have), cast("Mapping[str, Any]", inner)):
            return False
    return True


def _holds(have: Any, wanted: Any) -> bool:
    same = type(have) is type(wanted) and have == wanted
    if same or not is_array(have) or not isinstance(wanted, list | tuple):
        return same
    return all(each in have for each in cast("Iterable[Any]", wanted))


MAX_CAPABILITIES = 4 * 1024
"""Maximum bytes of declared capabilities to keep in full. A session, connection, or subscription holds them throughout,
so they must not fill a server's memory.
"""


_decode_known = decoder(
    msgspec.defstruct("_KnownCapabilities", [(name, Raw | UnsetType, UNSET) for name in CLIENT_CAPABILITIES])
)
"""Decodes the capabilities that a server asks for, with their settings undecoded, and skips other members."""


def read_capabilities(raw: bytes) -> Json:
    """Return the declared client capabilities. Above `MAX_CAPABILITIES` bytes, return only the standard ones.

    Raises:
        msgspec.DecodeError: The value isn't an object.
    """
    if len(raw) <= MAX_CAPABILITIES:
        return decode_object(raw)
    known = msgspec.structs.asdict(_decode_known(raw))
    return {
        name: decode_object(value) if len(value) <= MAX_CAPABILITIES // len(known) else {}
        for name, value in known.items()
        if value is not UNSET
    }


decode_loose_params = decoder(LooseParams)
decode_params_with_meta = decoder(ParamsWithMeta)


ANNOTATION = "x-mcp-header"
MAX_SAFE_INTEGER = 2**53 - 1

Kind = Literal["string", "integer", "boolean"]

_OPEN = "=?base64?"
_CLOSE = "?="
_KINDS = get_args(Kind)
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""RFC 9110 §5.6.2."""
_PLAIN = re.compile(r"[\t\x20-\x7e]*")
_INTEGER = re.compile(r"(-?[0-9]{1,16})(?:\.0+)?")


class ParamHeader(Struct, frozen=True, gc=False):
    """A parameter with a header annotation."""

    path: tuple[str, ...]
    """Keys from the arguments object to the value."""
    header: bytes
    """The lower-case header name, ``mcp-param-…``."""
    kind: Kind
    """The declared type."""


def find_annotations(input_schema: Mapping[str, Any]) -> tuple[ParamHeader, ...]:
    """Return the annotated parameters of a tool, in schema order. Call it when the tool is registered.

    Args:
        input_schema: The input schema of the tool.

    Raises:
        ValueError: An annotation breaks a rule for which clients drop the tool. The text names the location and the
            rule.

    Example:
        ``headers = find_annotations(tool.input_schema)``
    """
    if ANNOTATION not in repr(input_schema):  # few schemas have one, and the walk takes longer
        return ()
    found: dict[bytes, ParamHeader] = {}
    for where, path, schema in _positions("inputSchema", (), dict(input_schema)):
        if ANNOTATION not in schema:
            continue
        token: object = schema[ANNOTATION]
        kind: object = schema.get("type")
        if not path:
            raise ValueError(f"{where}: {ANNOTATION} is allowed only on properties reached through 'properties' alone.")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise ValueError(f"{where}: {ANNOTATION} must be a non-empty RFC 9110 token, not {token!r}.")
        if kind not in _KINDS:
            raise ValueError(f"{where}: {ANNOTATION} needs type string, integer, or boolean, not {kind!r}.")
        header = b"mcp-param-" + token.lower().encode()
        if header in found:
            other = ".".join(found[header].path)
            raise ValueError(f"{where}: {ANNOTATION} {token!r} is already used by {other!r}.")
        found[header] = ParamHeader(path, header, cast("Kind", kind))
    return tuple(found.values())


def _positions(
    where: str, path: tuple[str, ...] | None, schema: Any
) -> Iterator[tuple[str, tuple[str, ...] | None, Mapping[str, Any]]]:
    """Iterate over all schemas inside `schema`, starting with itself. The path is ``None`` outside a chain of
    ``properties`` keys.

    Data that looks like a schema (``default``, ``enum``, ``examples``) and a property *named* ``x-mcp-header`` aren't
    schema positions.
    """
    if not is_object(schema):
        return  # A boolean schema, or not a schema.
    yield where, path, schema
    for at, member in children(schema):
        steps = tuple(map(str, at))
        below = (*path, *steps[1:]) if steps[0] == "properties" and path is not None else None
        yield from _positions(".".join((where, *steps)), below, member)


def encode_value(value: str) -> str:
    """Return the header text for `value`: unchanged if HTTP preserves it, otherwise in the Base64 sentinel."""
    plain = _PLAIN.fullmatch(value) and value == value.strip(" \t") and not _is_sentinel(value)
    return value if plain else f"{_OPEN}{b64encode(value.encode()).decode()}{_CLOSE}"


def param_headers(known: Iterable[ParamHeader], arguments: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the headers of a tool call that repeat its arguments: ``param_headers(found, {"region": "eu"})``.

    Args:
        known: The tool's annotated parameters (see `find_annotations`).
        arguments: Arguments of the call.
    """
    headers: dict[str, str] = {}
    for param in known:
        value = value_at(arguments, param.path)
        if isinstance(value, bool | int):
            value = str(value).lower()
        if isinstance(value, str):
            headers[param.header.decode().title()] = encode_value(value)
    return headers


def decode_value(raw: bytes, header: str = "Header value") -> str:
    """Return the value that a header field carries. `header` names it in errors.

    Raises:
        ProtocolError: HEADER_MISMATCH, for characters that aren't allowed, or a sentinel with invalid Base64 or UTF-8.
    """
    text = raw.decode("latin-1").strip(" \t")
    if not _PLAIN.fullmatch(text):
        raise _mismatch(f"{header} has characters outside visible ASCII. Encode it as {_OPEN}…{_CLOSE}.")
    if not _is_sentinel(text):
        return text
    payload = text[len(_OPEN) : -len(_CLOSE)].encode()
    try:
        value = b64decode(payload, validate=True)
        # The decoder ignores trailing bits, so one value would have several spellings (RFC 4648 §3.5).
        if b64encode(value) == payload:
            return value.decode()
    except (Base64Error, UnicodeDecodeError):
        pass
    raise _mismatch(f"{header} isn't Base64-encoded UTF-8 text")


def decode_name(raw: bytes) -> str:
    """Return the value of ``Mcp-Name``.

    Args:
        raw: The value of the header.

    Raises:
        ProtocolError: HEADER_MISMATCH, as for `decode_value`.

    Example:
        ``decode_name(b"order")``
    """
    return decode_value(raw, "Mcp-Name")


def _is_sentinel(text: str) -> bool:
    return text.startswith(_OPEN) and text.endswith(_CLOSE) and len(text) >= len(_OPEN) + len(_CLOSE)


def check(params: tuple[ParamHeader, ...], headers: Mapping[bytes, bytes], arguments: Mapping[str, Any]) -> None:
    """Compare each annotated argument with its header. Other ``Mcp-Param-*`` headers are ignored.

    An argument that is absent or null must have no header. Numbers compare by value, so ``42.0`` equals ``42``.

    Raises:
        ProtocolError: HEADER_MISMATCH. The message names the header.
    """
    for param in params:
        raw = headers.get(param.header)
        value = value_at(arguments, param.path)
        if raw is None and value is None:
            continue
        header = param.header.decode()
        argument = ".".join(param.path)
        if raw is None:
            raise _mismatch(f"{header} is missing, but argument {argument!r} is given")
        if value is None:
            raise _mismatch(f"{header} is present, but argument {argument!r} isn't given")
        if not _same(decode_value(raw, header), value):
            raise _mismatch(f"{header} doesn't match argument {argument!r}")


def _same(text: str, value: Any) -> bool:
    # Compare by the type of the value instead of the declared type: validation reports an argument of the wrong type.
    # bool comes first because it's an int.
    if isinstance(value, str):
        return text == value
    if isinstance(value, bool):
        return text == ("true" if value else "false")
    if isinstance(value, int | float) and abs(value) <= MAX_SAFE_INTEGER:
        number = _INTEGER.fullmatch(text)
        return number is not None and int(number[1]) == value
    return False


def _mismatch(reason: str) -> ProtocolError:
    return ProtocolError(HEADER_MISMATCH, f"Header mismatch: {reason}")
