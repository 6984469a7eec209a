"""The negotiated state of a connection, and the encoding of requests."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from millstream._protocol.content import Icon
from millstream._protocol.json_schema import members
from millstream._protocol.jsonrpc import encode
from millstream._protocol.metadata import CAPABILITIES_KEY, CLIENT_KEY, LOG_LEVEL_KEY, VERSION_KEY, Implementation
from millstream._protocol.revisions import Revision
from millstream._version import __version__
from millstream.client._options import Options
from millstream.client._questions import QuestionHandler
from millstream.client._transports.transport import Transport


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


class LocalPeer:
    """The client's identity and capabilities."""

    def __init__(
        self, options: Options, questions: QuestionHandler, declared: Sequence[DeclaredCapability] = ()
    ) -> None:
        self._options = options
        self._questions = questions
        self._declared = declared
        self.about: Implementation = Implementation(options.name, options.version or __version__)

    def capabilities(self, revision: Revision) -> dict[str, Any]:
        """Return the capabilities to declare in a revision."""
        capabilities = self._questions.capabilities(revision, self._options.declare)
        for each in self._declared:
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
        if self._options.log_level:
            found[LOG_LEVEL_KEY] = self._options.log_level
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
