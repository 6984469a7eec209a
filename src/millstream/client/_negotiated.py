"""The negotiated state of a connection, and how requests are encoded from then on."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from millstream._protocol.jsonrpc import encode
from millstream._protocol.metadata import CAPABILITIES_KEY, CLIENT_KEY, LOG_LEVEL_KEY, VERSION_KEY, Implementation
from millstream._protocol.revisions import Revision
from millstream._version import __version__
from millstream.client._options import Options
from millstream.client._questions import QuestionHandler
from millstream.client._transports.transport import Transport


class Negotiated(Struct, frozen=True, kw_only=True):
    """The result of a handshake or of `server/discover`."""

    revision: Revision
    capabilities: Mapping[str, Any]
    server: Implementation
    instructions: str = ""


class Connection(Struct):
    """A connection after negotiation."""

    transport: Transport
    agreement: Negotiated
    meta: bytes
    """The `_meta` members of every request, as JSON without braces."""


class LocalPeer:
    """The client as it identifies itself."""

    __slots__ = ("_options", "_questions", "about")

    def __init__(self, options: Options, questions: QuestionHandler) -> None:
        self._options = options
        self._questions = questions
        self.about: Implementation = Implementation(options.name, options.version or __version__)

    def capabilities(self, revision: Revision) -> dict[str, Any]:
        """Return the capabilities to declare in a revision."""
        return self._questions.capabilities(revision, self._options.declare)

    def meta(self, revision: Revision) -> bytes:
        """Return the `_meta` members of every request: https://modelcontextprotocol.io/specification/2026-07-28/basic."""
        if revision.handshake:
            return b""
        members: dict[str, Any] = {
            VERSION_KEY: revision.date,
            CAPABILITIES_KEY: self.capabilities(revision),
            CLIENT_KEY: self.about,
        }
        if self._options.log_level:
            members[LOG_LEVEL_KEY] = self._options.log_level
        return encode(members)[1:-1]


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
