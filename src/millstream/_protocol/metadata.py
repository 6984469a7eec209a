"""`_meta` of requests: the per-request envelope of 2026-07-28, progress tokens, and client capabilities.

The envelope's keys are those of https://modelcontextprotocol.io/specification/2026-07-28/basic.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, cast, get_args

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from millstream._protocol.json_schema import members
from millstream._protocol.jsonrpc import MAX_ID, decoder

TASKS = "io.modelcontextprotocol/tasks"
"""The identifier of the tasks extension."""
VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"
CLIENT_KEY = "io.modelcontextprotocol/clientInfo"
LOG_LEVEL_KEY = "io.modelcontextprotocol/logLevel"
SERVER_KEY = "io.modelcontextprotocol/serverInfo"
ORIGIN_KEY = "millstream.gateway/upstream"
"""Member of `_meta` of what a gateway lists and reads: the names of its upstream and of those behind it."""
SUBSCRIPTION_KEY = "io.modelcontextprotocol/subscriptionId"
"""Member of `_meta` of notifications on a stream: the id of the request that opened it."""

LogLevel = Literal["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"]
LOG_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)
"""RFC 5424 severities, from least to most severe."""

ProgressToken = int | Annotated[str, Meta(max_length=MAX_ID)]
"""Bounded like an id, because every progress notification repeats it."""


class Implementation(Struct, frozen=True, omit_defaults=True, rename="camel", gc=False):
    """The name and version of a client or server. For display only; never base a decision on them.

    Example:
        ``Implementation("shop", "1.0")``
    """

    name: str = ""
    version: str = ""
    title: str | None = None
    description: str | None = None
    website_url: str | None = None


class RequestMeta(
    Struct,
    gc=False,
    rename={
        "version": VERSION_KEY,
        "capabilities": CAPABILITIES_KEY,
        "client": CLIENT_KEY,
        "log_level": LOG_LEVEL_KEY,
        "progress_token": "progressToken",
    },
):
    """The members of a request's `_meta` that a server reads."""

    version: str | UnsetType = UNSET
    capabilities: Raw | UnsetType = UNSET
    """Decoded by `read_capabilities`."""
    client: Implementation | UnsetType = UNSET
    log_level: str | UnsetType = UNSET
    progress_token: ProgressToken | UnsetType = UNSET

    def read_client(self) -> "ClientInfo":
        """Return the client's description of itself.

        Raises:
            msgspec.DecodeError: The capabilities aren't an object.
        """
        capabilities = {} if self.capabilities is UNSET else read_capabilities(self.capabilities)
        if self.client is UNSET:
            return ClientInfo(capabilities)
        return ClientInfo(capabilities, self.client.name, self.client.version)


class ParamsWithMeta(Struct, gc=False, rename={"meta": "_meta"}):
    """`params` with the members of `_meta` that a server reads."""

    meta: RequestMeta = msgspec.field(default_factory=RequestMeta)


class LooseMeta(Struct, gc=False, rename={"version": VERSION_KEY, "capabilities": CAPABILITIES_KEY}):
    """The members that tell the eras apart, of any type."""

    version: Raw | UnsetType = UNSET
    capabilities: Raw | UnsetType = UNSET


class LooseParams(Struct, gc=False, rename={"meta": "_meta"}):
    """`params`, decoded only down to `_meta`."""

    meta: LooseMeta | UnsetType = UNSET


class ClientInfo(Struct, frozen=True, gc=False):
    """The client's description of itself: `capabilities` as declared, and a name and version for display."""

    capabilities: Mapping[str, Any] = {}
    name: str = ""
    version: str = ""

    @property
    def extensions(self) -> dict[str, Any]:
        """Return the settings of each extension that the client declared, by identifier."""
        return members(self.capabilities.get("extensions"))

    @property
    def experimental(self) -> dict[str, Any]:
        """Return the experimental capabilities that the client declared, by name."""
        return members(self.capabilities.get("experimental"))


CLIENT_CAPABILITIES: Mapping[str, frozenset[str] | None] = {
    "elicitation": frozenset(("form", "url")),
    "experimental": None,
    "extensions": None,
    "roots": frozenset(("listChanged",)),
    "sampling": frozenset(("context", "tools")),
    "tasks": frozenset(("cancel", "list", "requests")),
}
"""Capabilities that the revisions define, each with its settings; None if the settings are open. Clients can declare
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
    if same or not isinstance(have, list) or not isinstance(wanted, list | tuple):
        return same
    declared = cast("Iterable[Any]", have)
    return all(each in declared for each in cast("Iterable[Any]", wanted))


MAX_CAPABILITIES = 4 * 1024
"""Maximum bytes of declared capabilities to keep in full. A session, connection, or subscription holds them for its
whole life, so a client must not be able to fill a server with them.
"""


class _KnownCapabilities(Struct, gc=False):
    """The capabilities that a server asks for, undecoded. Other members are skipped."""

    roots: Raw | UnsetType = UNSET
    sampling: Raw | UnsetType = UNSET
    elicitation: Raw | UnsetType = UNSET
    tasks: Raw | UnsetType = UNSET
    extensions: Raw | UnsetType = UNSET
    experimental: Raw | UnsetType = UNSET


_decode_known = decoder(_KnownCapabilities)
_decode_object = decoder(dict[str, Any])


def read_capabilities(raw: bytes) -> dict[str, Any]:
    """Return the declared client capabilities. Above `MAX_CAPABILITIES` bytes, only those that a server can ask for.

    Raises:
        msgspec.DecodeError: The value isn't an object.
    """
    if len(raw) <= MAX_CAPABILITIES:
        return _decode_object(raw)
    known = msgspec.structs.asdict(_decode_known(raw))
    return {
        name: _decode_object(value) if len(value) <= MAX_CAPABILITIES // len(known) else {}
        for name, value in known.items()
        if value is not UNSET
    }


decode_loose_params = decoder(LooseParams)
decode_params_with_meta = decoder(ParamsWithMeta)
