"""POST of Streamable HTTP: fast paths for usual tool calls and lists. Everything else takes the exact path.

A usual call of either era is decoded in one or two typed passes and passed to the dispatcher, with no object besides
the `Call`. Anything unusual is left to `exact`.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import UNSET

from millstream._http.message import HttpRequest, Response, known_accept, parse_accept
from millstream._protocol.jsonrpc import MALFORMED, MAX_ID, exceeds_limits
from millstream._protocol.metadata import ClientInfo
from millstream._protocol.revisions import ASSUMED, HANDSHAKE, NEWEST, Revision
from millstream._server.calls.call import NOBODY, Call
from millstream._server.features.tools import (
    PreparedCall,
    decode_handshake_call,
    decode_request,
    decode_request_params,
)
from millstream._server.load import LIGHT
from millstream._transports.streamable.exact import serve_exactly
from millstream._transports.streamable.exchange import StreamableEndpoint, finish

_VERSION = NEWEST.date.encode()
_BY_HEADER: Mapping[bytes | None, Revision] = {
    None: ASSUMED,
    **{date.encode(): revision for date, revision in HANDSHAKE.items()},
}
"""`MCP-Protocol-Version` of a handshake-era request -> revision, for requests without a session."""
_LISTS = {method.encode(): method for method in NEWEST.requests if method.endswith("/list")}
_MAX_USUAL = 64 * 1024
"""Maximum bytes of a usual body. The exact path reads a larger one in parts, each with its own bound."""


class Streamable:
    """The POST handler of the MCP endpoint."""

    def __init__(self, endpoint: StreamableEndpoint) -> None:
        dispatcher, settings = endpoint.dispatcher, endpoint.services.settings
        self._endpoint = endpoint
        self._dispatcher = dispatcher
        self._open_line = endpoint.open_line
        self._prepares = not settings.tool_timeout and dispatcher.begin is None
        self._fast = dispatcher.registry.fast if self._prepares else {}
        self._tools = dispatcher.registry.tools
        self._calls = dispatcher.calls
        self._most = dispatcher.load.max_each
        """With fewer calls in flight, no caller can exceed its limit."""

    async def post(self, request: HttpRequest) -> Response | None:
        """Serve one POST of any revision."""
        headers, body = request.headers, request.body
        call, size = None, len(body)
        if (
            # The request needs checks before it's decoded.
            headers.get(b"content-type") != b"application/json"
            or size > _MAX_USUAL
            or len(headers) != len(request.raw_headers)
            or not body.isascii()
            or exceeds_limits(body)
            or (len(self._calls) >= self._most and self._dispatcher.load.full(request.owner))
            or not (known_accept(headers.get(b"accept")) or parse_accept(headers.get(b"accept"))).json
            or b"content-encoding" in headers
        ):
            pass
        elif b"mcp-method" not in headers:
            if self._prepares:
                call = self._fast_handshake_call(request)
        elif headers[b"mcp-method"] == b"tools/call" and headers.get(b"mcp-protocol-version") == _VERSION:
            fast = self._fast.get(headers.get(b"mcp-name", b""))
            if fast is not None:
                call = self._fast_call(request, fast)
        elif headers[b"mcp-method"] in _LISTS and headers.get(b"mcp-protocol-version") == _VERSION:
            call = self._fast_list(request)
        if call is None or (size > LIGHT and not self._dispatcher.load.takes(call, size)):
            del body  # a stream may be open for a day
            return await serve_exactly(self._endpoint, request)
        session = call.session
        answer = await self._dispatcher.call(call, "" if session is None else session.id)
        if answer and call.reply_channel is None and call.failure is None:
            return Response(answer)
        return await finish(call, answer)

    def _fast_handshake_call(self, request: HttpRequest) -> Call | None:
        """Return a tool call of a handshake revision, decoded in two typed passes, or None if anything is unusual."""
        headers, sessions = request.headers, self._endpoint.sessions
        if sessions is None:
            session, revision = None, _BY_HEADER.get(headers.get(b"mcp-protocol-version"))
        else:
            session = sessions.find_known(headers.get(b"mcp-session-id"), request.principal)
            revision = None if session is None else session.revision
            if headers.get(b"mcp-protocol-version") not in _BY_HEADER:
                return None
        if revision is None:
            return None
        try:
            envelope = decode_handshake_call(request.body)
            params = envelope.params
            meta, tool = params.meta, self._tools.get(params.name)
            if tool is None or not tool.plain or meta.version is not UNSET:
                return None
            decode = tool.decode
            arguments = decode(params.arguments)
        except Exception:  # as in `_fast_call`
            return None
        if session is None:
            request.cancel_on_disconnect = True
        return Call(
            revision=revision,
            id=envelope.id,
            method="tools/call",
            client=NOBODY if session is None else session.client,
            open_reply=self._open_line,
            origin=request,
            transport="http",
            session=session,
            principal=request.principal,
            headers=headers,
            name=params.name,
            token=None if meta.token is UNSET else meta.token,
            tool=tool,
            arguments=arguments,
        )

    def _fast_call(self, request: HttpRequest, fast: PreparedCall) -> Call | None:
        """Return a call decoded in one typed pass over the body, or None if anything is unusual."""
        try:
            decode = fast.decode
            envelope = decode(request.body)
        except Exception:  # Includes errors of validators, which the exact path reports.
            return None
        params = envelope.params
        meta = params.meta
        about = meta.client
        request.cancel_on_disconnect = True
        return Call(  # a 16th keyword argument would make Python build a dict
            revision=NEWEST,
            id=envelope.id,
            method="tools/call",
            client=ClientInfo(meta.capabilities, about.name, about.version) if about else ClientInfo(meta.capabilities),
            open_reply=self._open_line,
            origin=request,
            transport="http",
            principal=request.principal,
            headers=request.headers,
            name=params.name,
            token=None if meta.token is UNSET else meta.token,
            log_level="" if meta.log_level is UNSET else meta.log_level,
            tool=fast.tool,
            arguments=params.arguments,
            responses=params.responses or None,
        )

    def _fast_list(self, request: HttpRequest) -> Call | None:
        """Return a list request decoded in two typed passes, or None if anything is unusual. Its handler reads the
        parameters.
        """
        headers, body = request.headers, request.body
        if len(body) > MAX_ID or request.query:
            return None
        try:
            envelope = decode_request(body)
            meta: Any = decode_request_params(envelope.params).meta  # its levels are a Literal created at runtime
        except MALFORMED:
            return None
        method = envelope.method
        if method != _LISTS[headers[b"mcp-method"]] or not self._dispatcher.registry.serves(method, NEWEST):
            return None
        about = meta.client
        request.cancel_on_disconnect = True
        return Call(
            revision=NEWEST,
            id=envelope.id,
            method=method,
            params=bytes(envelope.params),
            client=ClientInfo(meta.capabilities, about.name, about.version) if about else ClientInfo(meta.capabilities),
            open_reply=self._open_line,
            origin=request,
            transport="http",
            principal=request.principal,
            headers=headers,
            token=None if meta.token is UNSET else meta.token,
            log_level="" if meta.log_level is UNSET else meta.log_level,
        )
