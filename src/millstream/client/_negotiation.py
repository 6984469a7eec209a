"""The options of a client, the state that it negotiates with a server, and the encoding of requests.

The options are the less common settings. Their defaults suit a person's own machine.
"""

import logging
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from millstream._protocol.content import Icon
from millstream._protocol.errors import SuggestionMeta
from millstream._protocol.json_schema import members, value_at
from millstream._protocol.jsonrpc import encode
from millstream._protocol.metadata import (
    CAPABILITIES_KEY,
    CLIENT_KEY,
    LOG_LEVEL_KEY,
    VERSION_KEY,
    Implementation,
    ParamHeader,
    encode_value,
    find_annotations,
)
from millstream._protocol.notifications import ToolDescription
from millstream._protocol.revisions import Revision
from millstream._version import __version__
from millstream.client._endpoint import Auth
from millstream.client._questions import QuestionHandler
from millstream.client._transports import Transport


class Options(Struct, frozen=True, kw_only=True, metaclass=SuggestionMeta):
    """Limits, names, and connection details. ``Client(url, options=Options(connect_timeout=3))``"""

    name: str = "millstream"
    """Name that the client sends to servers."""
    version: str = ""
    """Version of the client; empty means Millstream's version."""
    connect_timeout: float = 10.0
    """Seconds to wait for a connection, or for a process to start."""
    probe_timeout: float = 10.0
    """Seconds to wait for `server/discover` before also trying the handshake."""
    max_call_seconds: float = 3600.0
    """Maximum seconds for a call, even with progress."""
    max_bytes: int = 64 * 1024 * 1024
    """Maximum bytes of one message from the server, or of all pages of a list together."""
    max_queued_messages: int = 10_000
    """Maximum messages waiting for your handlers. A server that sends more is disconnected."""
    max_connections: int = 100
    """Maximum open HTTP connections; further calls wait for a free one."""
    max_rounds: int = 32
    """Maximum rounds of questions before the result of one call."""
    max_pages: int = 1000
    """Maximum pages of one list."""
    log_level: str = ""
    """Minimum severity of log messages to request; empty leaves it to the server."""
    cache: bool = True
    """Whether to cache lists and resources for the time that the server allows."""
    env: Mapping[str, str] = {}
    """Environment variables for a server that the client starts, in addition to `HOME`, `PATH`, and the like."""
    cwd: str | None = None
    """Working directory of a server that the client starts."""
    stderr: Callable[[str], object] | bool | None = None
    """Where the standard error of a server process goes: ``True`` prints it to ours, ``False`` drops it, and a function
    receives each line. ``None`` prints it on a terminal and in pytest.
    """
    tls: ssl.SSLContext | None = None
    """Certificates to trust or present; by default, those of the system."""
    extra_capabilities: Mapping[str, object] = {}
    """Capabilities to declare in addition to those of the handlers."""
    auth: Auth | None = None
    """Source of credentials that change; use headers for fixed ones."""


class ServerInfo(Implementation, frozen=True):
    """The server's description of itself. Nothing depends on it."""

    icons: tuple[Icon, ...] = ()


class Negotiation(Struct, frozen=True, kw_only=True):
    """The result of a handshake or of `server/discover`."""

    revision: Revision
    capabilities: Mapping[str, Any]
    server: ServerInfo
    instructions: str = ""


class Connection(Struct):
    """A connection after negotiation."""

    transport: Transport
    negotiated: Negotiation
    meta: bytes
    """The `_meta` members of every request, as JSON without braces."""


class DeclaredCapability(Struct, frozen=True):
    """A capability that an extension declares."""

    member: str
    """``extensions`` or ``experimental``."""
    name: str
    value: Mapping[str, Any]
    revisions: frozenset[str]
    """Dates of the revisions that have it; empty for all."""


class LocalPeer(Struct, frozen=True):
    """The client's identity and capabilities."""

    options: Options
    questions: QuestionHandler
    declared: Sequence[DeclaredCapability] = ()

    @property
    def about(self) -> Implementation:
        """Name and version of the client."""
        return Implementation(self.options.name, self.options.version or __version__)

    def capabilities(self, revision: Revision) -> dict[str, Any]:
        """Return the capabilities to declare in a revision."""
        capabilities = self.questions.capabilities(revision, self.options.extra_capabilities)
        for each in self.declared:
            if not each.revisions or revision.date in each.revisions:
                capabilities[each.member] = {**members(capabilities.get(each.member)), each.name: each.value}
        return capabilities

    def meta(self, revision: Revision) -> bytes:
        """Return the `_meta` members of every request: https://modelcontextprotocol.io/specification/2026-07-28/basic."""
        if revision.handshake:
            return b""
        found: dict[str, Any] = {
            VERSION_KEY: revision.date,
            CAPABILITIES_KEY: self.capabilities(revision),
            CLIENT_KEY: self.about,
        }
        if self.options.log_level:
            found[LOG_LEVEL_KEY] = self.options.log_level
        return encode(found)[1:-1]


def with_meta(params: bytes, meta: bytes) -> bytes:
    """Add `_meta` to encoded parameters."""
    if not meta:
        return params
    if b'"_meta"' in params:
        found: dict[str, Any] = msgspec.json.decode(params)
        if isinstance(found.get("_meta"), dict):  # the caller's members, overridden by ours
            ours: dict[str, Any] = msgspec.json.decode(b"{%b}" % meta)
            return encode({**found, "_meta": found["_meta"] | ours})
    return params[:-1] + (b'"_meta":{' if params == b"{}" else b',"_meta":{') + meta + b"}}"


def request_body(request_id: int, method: str, params: bytes) -> bytes:
    """Encode a request around encoded parameters."""
    return b'{"jsonrpc":"2.0","id":%d,"method":"%b","params":%b}' % (request_id, method.encode(), params)


_logger = logging.getLogger(__name__)
_NO_HEADERS: Mapping[str, str] = {}


class ToolHeaders:
    """Header annotations of the tools that have been listed.

    They say which arguments are also sent as headers. Tools with invalid annotations are left out of lists, as the
    specification requires: https://modelcontextprotocol.io/specification/2026-07-28/server/tools.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[ParamHeader, ...]] = {}

    def learn(self, tools: list[ToolDescription]) -> list[ToolDescription]:
        """Store the annotations of tools, and return the tools whose annotations are valid."""
        usable: list[ToolDescription] = []
        for tool in tools:
            try:
                found = find_annotations(tool.input_schema)
            except (ValueError, RecursionError) as exc:
                _logger.warning("Left out the tool %s: %s", tool.name, exc)
                continue
            if found:
                self._known[tool.name] = found
            else:
                self._known.pop(tool.name, None)
            usable.append(tool)
        return usable

    def of(self, tool: str, arguments: Mapping[str, Any]) -> Mapping[str, str]:
        """Return the headers of a call."""
        known = self._known.get(tool)
        return headers_of(known, arguments) if known else _NO_HEADERS


def headers_of(known: Iterable[ParamHeader], arguments: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the headers for the arguments of a call."""
    headers: dict[str, str] = {}
    for param in known:
        text = _text(value_at(arguments, param.path))
        if text is not None:
            headers[param.header.decode().title()] = encode_value(text)
    return headers


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) else None
