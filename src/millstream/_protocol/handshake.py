"""The `initialize` request and its result."""

from typing import Any

from msgspec import Struct

from millstream._protocol import revisions
from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._protocol.jsonrpc import MALFORMED, decoder, encode
from millstream._protocol.metadata import ClientInfo, read_capabilities
from millstream._protocol.notifications import InitializeRequestParams
from millstream._protocol.revisions import ASSUMED, Revision, negotiate

MAX_DISPLAYED = 256
"""Maximum number of characters kept of a client's name and version."""

_decode = decoder(InitializeRequestParams)


class Handshake(Struct, frozen=True, gc=False):
    """The negotiated result of an `initialize` request."""

    revision: Revision
    client: ClientInfo
    sessionless: bool
    """True if the request had no parameters. Such a client is a script and gets no session."""


def read_initialize(params: bytes) -> Handshake:
    """Read the parameters of `initialize` and negotiate a revision.

    Missing parameters, `clientInfo`, or `capabilities` are tolerated.

    Raises:
        ProtocolError: INVALID_PARAMS, for parameters without a usable `protocolVersion`.
    """
    if not params:
        return Handshake(ASSUMED, ClientInfo(), True)
    try:
        given = _decode(params)
        capabilities = read_capabilities(given.capabilities)
    except MALFORMED as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: {exc}") from exc
    info = given.client_info
    client = ClientInfo(capabilities, info.name[:MAX_DISPLAYED], info.version[:MAX_DISPLAYED])
    return Handshake(negotiate(given.protocol_version), client, False)


def initialize_result(
    revision: Revision, capabilities: dict[str, Any], info: dict[str, Any], instructions: str
) -> bytes:
    """Return the encoded result of `initialize`."""
    result: dict[str, Any] = {
        "protocolVersion": revision.date,
        "capabilities": capabilities,
        "serverInfo": revisions.implementation(info, revision),
    }
    if instructions:
        result["instructions"] = instructions
    return encode(result)
