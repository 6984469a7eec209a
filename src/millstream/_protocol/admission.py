"""Admission of requests: check an envelope and HTTP headers, and return a request or raise an error with its code and
status.

See MCP 2026-07-28, basic/versioning and basic/transports/streamable-http, and, for older clients, 2025-11-25,
basic/transports. `per_request_revision` distinguishes the two eras by the body; the header must agree.
`admit_per_request` runs the checks of 2026-07-28 in order. The transport routes handshake-era requests by session. This
module has the functions that it needs for its checks and for reading `initialize`. stdio passes no headers, so the
header checks are skipped.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec import UNSET, Struct

from millstream._protocol import metadata, revisions
from millstream._protocol.errors import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    MISSING_CLIENT_CAPABILITY,
    UNSUPPORTED_VERSION,
    ProtocolError,
    ToolError,
)
from millstream._protocol.foreign import foreign_decoder
from millstream._protocol.jsonrpc import MALFORMED, NO_MEMBERS, Envelope, Json, decode_members, decoder, encode
from millstream._protocol.metadata import (
    MAX_DISPLAYED,
    ClientInfo,
    RequestMeta,
    declares,
    decode_name,
    read_capabilities,
)
from millstream._protocol.notifications import InitializeRequestParams
from millstream._protocol.revisions import (
    ALL,
    ASSUMED,
    HANDSHAKE,
    NEWEST,
    PER_REQUEST,
    Revision,
    names_per_request_era,
    negotiate,
)
from millstream._text import shorten

Headers = Mapping[bytes, bytes]

_NAME_MEMBERS: Mapping[str, str] = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
"""Methods that need `Mcp-Name`, each with the member of `params` that the header repeats."""


class HeaderParam(Struct, frozen=True, gc=False):
    """The member of an extension method's params that `Mcp-Name` repeats."""

    member: str
    is_required: bool = True
    """Whether to reject requests without the header."""


_NO_PARAMS: Mapping[str, HeaderParam] = {}
_REQUESTS = frozenset(method for revision in ALL for method in revision.requests)

_ROUTING = (b"mcp-protocol-version", b"mcp-method", b"mcp-name")


class Admission(Struct, frozen=True, gc=False):
    """A per-request-era request that passed every check before its parameters."""

    revision: Revision
    meta: RequestMeta
    client: ClientInfo
    name: str
    """The value of `params.name` or `params.uri`, for methods that have one."""


_decode_text = decoder(str)


def header_version(headers: Headers) -> str:
    """Return the `MCP-Protocol-Version` header without surrounding white space, or an empty string."""
    return headers.get(b"mcp-protocol-version", b"").decode("latin-1").strip(" \t")


def per_request_revision(message: Envelope, headers: Headers | None = None) -> Revision | None:
    """Return the per-request revision that a request or notification names, or None for the handshake era.

    An unknown revision is treated as the newest, until `admit_per_request` rejects it.

    Raises:
        ProtocolError: An `initialize` request names a revision without a handshake in its header.
    """
    try:  # the types of other values don't matter
        meta = metadata.decode_loose_params(message.params or b"{}").meta
    except MALFORMED:
        meta = metadata.NO_META
    enveloped = meta.version is not UNSET
    by_header = headers is not None and names_per_request_era(header_version(headers))
    if message.method == "initialize" and not (enveloped and meta.capabilities is not UNSET):
        if by_header:
            raise ProtocolError(
                HEADER_MISMATCH,
                "The MCP-Protocol-Version header specifies a revision that has no initialize request. Send a "
                "revision with a handshake, or omit the header.",
            )
        return None
    if not (enveloped or by_header):
        return None
    return PER_REQUEST.get(str(meta.version) if enveloped else header_version(headers or {}), NEWEST)


def check_notification(message: Envelope) -> None:
    """Reject a message without an id whose method requires a response.

    Raises:
        ProtocolError: INVALID_REQUEST.
    """
    if message.method in _REQUESTS:
        raise ProtocolError(INVALID_REQUEST, f"Invalid request: missing id: {message.method} needs one", status=400)


def admit_per_request(
    message: Envelope,
    *,
    serves: Callable[[str, Revision], bool],
    requires: Callable[[str, str], Mapping[str, Any]],
    header_params: Mapping[str, HeaderParam] = _NO_PARAMS,
    headers: Headers | None = None,
    raw_headers: Iterable[tuple[bytes, bytes]] = (),
) -> Admission:
    """Run the specification's checks a to e. The handler runs f (parameter headers) and g (parameters).

    Args:
        message: The request.
        serves: Returns whether the server has a method in a revision.
        requires: Returns the client capabilities that a method and name require.
        header_params: Extension methods with `Mcp-Name`, each with the member of `params` that the header repeats.
        headers: The last value of each header, or None for a transport without headers.
        raw_headers: All headers, to find repeated ones.

    Raises:
        ProtocolError: The first check that failed, with its code and HTTP status.
    """
    meta, client = _read_meta(message)
    member = _NAME_MEMBERS.get(message.method)
    if member is None and (param := header_params.get(message.method)) is not None:
        member = param.member
    name = _read_member(message.params, member)
    version = meta.version
    assert version is not UNSET  # noqa: S101  _read_meta checked it
    if headers is not None:
        check_routing(message.method, name, version, headers, raw_headers, header_params=header_params)
    revision = PER_REQUEST.get(version)
    if revision is None:
        raise ProtocolError(
            UNSUPPORTED_VERSION,
            "Unsupported protocol version",
            {"supported": list(PER_REQUEST), "requested": shorten(version)},
        )
    if not serves(message.method, revision):
        raise method_not_found(message.method)
    needed = requires(message.method, name)
    if needed:
        require_capabilities(client.capabilities, needed)
    return Admission(revision, meta, client, name)


def method_not_found(method: str) -> ProtocolError:
    """Return the error for a method that the revision or this server doesn't have."""
    return ProtocolError(METHOD_NOT_FOUND, f"Method not found: {shorten(method)}")


class MissingCapability(ProtocolError, ToolError):
    """The client didn't declare a capability. A function can catch it like other errors at a question."""


def require_capabilities(capabilities: Mapping[str, Any], needed: Mapping[str, Any]) -> None:
    """Check that a client has declared capabilities: ``require_capabilities(client.capabilities, {"roots": {}})``.

    Args:
        capabilities: Capabilities of the client.
        needed: Capabilities that a method or a tool needs.

    Raises:
        MissingCapability: MISSING_CLIENT_CAPABILITY with `data.requiredCapabilities`.
    """
    if not declares(capabilities, needed):
        raise MissingCapability(
            MISSING_CLIENT_CAPABILITY,
            f"Missing required client capability: {', '.join(needed)}",
            {"requiredCapabilities": needed},
        )


def _invalid_params(why: object) -> ProtocolError:
    return ProtocolError(INVALID_PARAMS, f"Invalid params: {why}", status=400)


def _read_meta(message: Envelope) -> tuple[RequestMeta, ClientInfo]:
    """Return `_meta`, and the client that it describes."""
    try:
        meta = metadata.decode_params_with_meta(message.params or b"{}").meta
        client = meta.read_client()
    except MALFORMED as exc:
        raise _invalid_params(exc) from exc
    missing = [
        key
        for key, value in ((metadata.VERSION_KEY, meta.version), (metadata.CAPABILITIES_KEY, meta.capabilities))
        if value is UNSET
    ]
    if missing:
        raise _invalid_params(f"_meta lacks {' and '.join(missing)}")
    if meta.log_level is not UNSET and meta.log_level not in metadata.LOG_LEVELS:
        levels = ", ".join(metadata.LOG_LEVELS)
        raise _invalid_params(f"unknown log level, use one of {levels}")
    return meta, client


def _read_member(params: bytes, member: str | None) -> str:
    """Return a string member of `params`, or an empty string if it's missing."""
    if member is None:
        return ""
    try:
        return _decode_text(decode_members(params or b"{}").get(member, b'""'))
    except MALFORMED as exc:
        raise _invalid_params(exc) from exc


def target_name(method: str, params: bytes) -> str:
    """Return the name or URI that a request is about: ``target_name("tools/call", b'{"name":"add"}')``.

    Args:
        method: Method of the request.
        params: Its params as JSON. If they have no name, the result is empty.
    """
    try:
        return _read_member(params, _NAME_MEMBERS.get(method))
    except ProtocolError:
        return ""


def check_routing(
    method: str,
    name: str,
    version: str,
    headers: Headers,
    raw_headers: Iterable[tuple[bytes, bytes]],
    *,
    header_params: Mapping[str, HeaderParam] = _NO_PARAMS,
) -> None:
    """Compare the routing headers with the body (MCP 2026-07-28, basic/transports/streamable-http).

    Raises:
        ProtocolError: HEADER_MISMATCH, for a header that is missing, repeated, malformed, or different from the body.
    """
    names = [key for key, _ in raw_headers]
    for header in names:
        if (header in _ROUTING or header.startswith(b"mcp-param-")) and names.count(header) > 1:
            raise _mismatch(header, "is sent more than once")
    _compare(b"mcp-protocol-version", header_version(headers), version, headers)
    _compare(b"mcp-method", headers.get(b"mcp-method", b"").decode("latin-1").strip(" \t"), method, headers)
    raw, param = headers.get(b"mcp-name"), header_params.get(method)
    if method in _NAME_MEMBERS or (param is not None and (param.is_required or raw is not None)):
        _compare(b"mcp-name", "" if raw is None else decode_name(raw.strip(b" \t")), name, headers)


def _compare(header: bytes, found: str, expected: str, headers: Headers) -> None:
    if header not in headers:
        raise _mismatch(header, "is missing")
    if found != expected:
        raise _mismatch(header, f"header value {shorten(found)!r} doesn't match the body's {shorten(expected)!r}")


def _mismatch(header: bytes, what: str) -> ProtocolError:
    title = "-".join({"mcp": "Mcp"}.get(part, part.capitalize()) for part in header.decode().split("-"))
    return ProtocolError(HEADER_MISMATCH, f"Header mismatch: {title} {what}")


def check_handshake_header(headers: Headers, negotiated: Revision | None) -> Revision | None:
    """Return a handshake-era request's revision: the negotiated one, or without a session, that of the header, if any.

    In a session, the header only has to contain a known version.

    Raises:
        ProtocolError: The version is unknown or has no handshake (HTTP 400).
    """
    if b"mcp-protocol-version" not in headers:
        return negotiated
    version = header_version(headers)
    revision = HANDSHAKE.get(version)
    if revision is None:
        raise ProtocolError(
            INVALID_REQUEST,
            f"Unsupported protocol version {version[:32]!r} in MCP-Protocol-Version. "
            f"Use one of {', '.join(HANDSHAKE)}.",
            status=400,
        )
    return negotiated or revision


_decode = foreign_decoder(InitializeRequestParams)


class Handshake(Struct, frozen=True, gc=False):
    """The negotiated result of an `initialize` request."""

    revision: Revision
    client: ClientInfo
    sessionless: bool
    """True if the request had no parameters. Such a client is a script and gets no session."""

    def repeats(self, revision: Revision, client: ClientInfo) -> bool:
        """Return whether a second `initialize` repeats the first. The official SDK responds to such a request."""
        return self.revision is revision and self.client == client


def read_initialize(params: bytes) -> Handshake:
    """Read the parameters of `initialize` and negotiate a revision.

    Missing or empty parameters, `clientInfo`, or `capabilities` are tolerated.

    Raises:
        ProtocolError: INVALID_PARAMS, for parameters without a usable `protocolVersion`.
    """
    if not params:
        return Handshake(ASSUMED, ClientInfo(), True)
    try:
        given = _decode(params)
        capabilities = {} if bytes(given.capabilities) in NO_MEMBERS else read_capabilities(given.capabilities)
    except MALFORMED as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: {exc}") from exc
    info = given.client_info
    client = ClientInfo(capabilities, info.name[:MAX_DISPLAYED], info.version[:MAX_DISPLAYED])
    return Handshake(negotiate(given.protocol_version), client, False)


def initialize_result(revision: Revision, capabilities: Json, info: Json, instructions: str) -> bytes:
    """Return the encoded result of `initialize`."""
    result: Json = {
        "protocolVersion": revision.date,
        "capabilities": capabilities,
        "serverInfo": revisions.implementation(info, revision),
    }
    if instructions:
        result["instructions"] = instructions
    return encode(result)
