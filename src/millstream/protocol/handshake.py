"""`initialize`: what the client said, and what the server answers (digest §2.1)."""

from typing import Any

import msgspec
from msgspec import Struct

from millstream.protocol import projection
from millstream.protocol.errors import INVALID_PARAMS, ProtocolError
from millstream.protocol.jsonrpc import encode
from millstream.protocol.metadata import Client, Implementation
from millstream.protocol.revisions import ASSUMED, Revision, negotiate


class _Params(Struct, rename="camel", gc=False):
    protocol_version: str
    capabilities: dict[str, Any] = {}
    client_info: Implementation = Implementation()


_decode = msgspec.json.Decoder(_Params).decode


class Opening(Struct, frozen=True, gc=False):
    """The result of reading `initialize`."""

    revision: Revision
    client: Client
    sessionless: bool
    """The client sent no parameters at all: a script, which gets no session."""


def read_initialize(params: bytes) -> Opening:
    """Negotiate. Missing `clientInfo` or `capabilities` are tolerated, as are missing parameters.

    Raises:
        ProtocolError: INVALID_PARAMS for parameters without a usable `protocolVersion`.
    """
    if not params:
        return Opening(ASSUMED, Client(), True)
    try:
        given = _decode(params)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: {exc}") from exc
    info = given.client_info
    return Opening(negotiate(given.protocol_version), Client(given.capabilities, info.name, info.version), False)


def initialize_result(
    revision: Revision, capabilities: dict[str, Any], info: dict[str, Any], instructions: str
) -> bytes:
    """The encoded result of `initialize`."""
    result: dict[str, Any] = {
        "protocolVersion": revision.date,
        "capabilities": capabilities,
        "serverInfo": projection.implementation(info, revision),
    }
    if instructions:
        result["instructions"] = instructions
    return encode(result)
