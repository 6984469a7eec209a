"""Tools for callers without MCP: the `/mcp/tools/*` dialect, and tools as REST operations.

The dialect (`POST /mcp/tools/list`, `POST /mcp/tools/call`) accepts abbreviated JSON-RPC bodies and answers with
JSON-RPC. `POST /tools/{name}` takes the arguments as the body and answers with the structured result or problem details
(`ProblemKind`). `GET /openapi.json` describes these operations.

Neither supports questions or progress: notifications are dropped, and a tool that asks a question fails. The dialect's
responses have the shape of the handshake era, which such scripts expect.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from millstream._http.message import (
    BUSY,
    INTERNAL,
    INVALID_ARGUMENTS,
    JSON_HEAD,
    MALFORMED,
    NEEDS_ANSWERS,
    REFUSED,
    TOOL_ERROR,
    UNKNOWN_TOOL,
    WRONG_TYPE,
    HttpRequest,
    ProblemKind,
    Response,
    carries_json,
    client_id_of,
    header_lines,
    media_type,
    problem,
    respond_with_tag,
)
from millstream._protocol import revisions
from millstream._protocol.errors import INVALID_REQUEST, MISSING_CLIENT_CAPABILITY, ProtocolError
from millstream._protocol.jsonrpc import (
    MAX_ID,
    Json,
    RequestId,
    check_text,
    decoder,
    encode,
    refusal_message,
    require_json,
)
from millstream._protocol.revisions import NEWEST, NEWEST_HANDSHAKE, Revision
from millstream._recent import Recent
from millstream._server.calls.call import Call, scopes_of
from millstream._server.calls.idempotency import KEY, RAN_AT
from millstream._server.dispatch import Dispatcher
from millstream._server.features.registry import Audience
from millstream._server.functions.plan import ArgumentError
from millstream._transports import openapi
from millstream._transports.open_streams import NOT_JSON, error_response, silent_call

_MAX_DESCRIBED = 64
"""Maximum number of cached documents, for mount points and for callers that see different tools."""

_FORM = b"application/x-www-form-urlencoded"
_BROWSER = (b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest", b"sec-fetch-user")


class _Envelope(Struct, gc=False):
    """A request body of the dialect. Every member is optional, but present members must be valid."""

    jsonrpc: str = "2.0"
    id: int | Annotated[str, Meta(max_length=MAX_ID)] | None = None
    method: str = ""
    params: Raw = Raw(b"")


class _Content(Struct, gc=False):
    text: str = ""


class _Result(Struct, gc=False):
    content: Raw = Raw(b"[]")
    structured: Raw = msgspec.field(default=Raw(b""), name="structuredContent")
    is_error: bool = msgspec.field(default=False, name="isError")


_decode_envelope = decoder(_Envelope)
_decode_result = decoder(_Result)
_decode_content = decoder(list[_Content])


class RestRoutes:
    """The HTTP handlers: `list_tools` and `call_tool` of the dialect, `run_tool` and `describe` of plain REST."""

    def __init__(self, dispatcher: Dispatcher, *, events: bool) -> None:
        """Prepare for the tools of a server.

        Args:
            dispatcher: Runs the tools.
            events: Whether the server has the routes of the hub.
        """
        self._address = dispatcher.address
        self._dispatcher = dispatcher
        self._registry = dispatcher.registry
        self._note = dispatcher.services.note
        self._mcp = {"endpoint": self._address.path.lstrip("/"), "events": events}
        # Prepared
        self._described: Recent[tuple[str, Audience, str], tuple[bytes, Callable[[HttpRequest], Response]]] = Recent(
            _MAX_DESCRIBED
        )
        """(mount point, audience) -> the encoded list of tools, and the OpenAPI document. The registry returns
        the same list object until the tools change.
        """

    # The dialect

    async def list_tools(self, request: HttpRequest) -> Response:
        """`POST /mcp/tools/list`."""
        return await self._dialect(request, "tools/list")

    async def call_tool(self, request: HttpRequest) -> Response:
        """`POST /mcp/tools/call`."""
        return await self._dialect(request, "tools/call")

    async def _dialect(self, request: HttpRequest, method: str) -> Response:
        if not _is_call(request):
            over = self._charge(request)
            self._note(method, "rest", status="415" if over is None else str(over.code))
            return NOT_JSON if over is None else error_response(over)
        request_id: RequestId | None = None
        try:
            self._dispatcher.load.admit(request)
            check_text(request.body)
            body = request.body or b"{}"
            envelope = _read_envelope(body, method)
            request_id = envelope.id
            params = bytes(envelope.params) or body
            call = self._call(request, NEWEST_HANDSHAKE, method, params, request_id or 0)
            self._dispatcher.load.take(call, len(params))
        except ProtocolError as exc:
            refusal = revisions.error(self._charge(request) or exc, NEWEST_HANDSHAKE)
            self._note(method, "rest", status=str(refusal.code))
            refusal.status = max(refusal.status, 400)
            return error_response(refusal)
        request.body = b""
        del body, envelope, params  # the call has its own data
        result, error = await self._dispatcher.outcome(call)
        if error is not None:
            body = refusal_message(request_id, error)
            return Response(body, error.status, JSON_HEAD + error.head) if error.head else Response(body)
        mark = b"" if request_id is None else b'"id":%b,' % encode(request_id)
        return Response(b'{"jsonrpc":"2.0",%b"result":%b}' % (mark, result))

    @staticmethod
    def _call(request: HttpRequest, revision: Revision, method: str, params: bytes, id: RequestId = 0) -> Call:
        request.cancel_on_disconnect = True
        return silent_call(
            revision,
            method,
            params,
            origin=request,
            transport="rest",
            principal=request.principal,
            headers=request.headers,
            client_id=client_id_of(request.query),
            id=id,
        )

    # Plain REST

    async def run_tool(self, request: HttpRequest) -> Response:
        """`POST /tools/{name}`: the body is the arguments, the reply is the structured result."""
        root, address = request.root_path, self._address
        name = request.path.removeprefix(address.tools)
        refuse = partial(self._refuse, request, name)
        if self._dispatcher.load.full(request.owner):
            return refuse(BUSY, "Too many calls are running. Try again later.")
        if not _is_json(request):
            return refuse(WRONG_TYPE, "Send the arguments with content-type application/json.")
        tool = self._registry.find("tools", name, request)
        if tool is None:
            text = (
                f"There is no tool {name[:128]!r}." if name else f"Specify the tool: POST to {root}{address.tools}NAME."
            )
            return refuse(UNKNOWN_TOOL, f"{text} {root}{address.openapi} lists the tools.")
        scopes = scopes_of(request.principal)
        if scopes is not None and not tool.scopes <= scopes:
            lacking = self._dispatcher.services.scope_error(tool.scopes)
            return refuse(REFUSED, lacking.message, head=lacking.head)
        if tool.requires:
            return refuse(NEEDS_ANSWERS, f"The tool requires the client capabilities {', '.join(tool.requires)}.")
        body, wrong = request.body or b"{}", MALFORMED
        try:
            check_text(body)
            try:
                arguments = tool.read(body)  # check early, because a tool's own errors would look the same later
            except ArgumentError:
                require_json(body)
                wrong = INVALID_ARGUMENTS
                raise
        except (ArgumentError, ProtocolError) as exc:
            return refuse(wrong, str(exc))
        members: Json = {"name": name, "arguments": Raw(body)}
        if key := request.headers.get(b"idempotency-key"):
            members["_meta"] = {KEY: key.decode("latin-1")}
        params = encode(members)
        call = self._call(request, NEWEST, "tools/call", params)
        # Header parameters repeat arguments for MCP routers. REST callers don't have to send them.
        call.headers = None if tool.headers else request.headers
        call.arguments = arguments
        if not self._dispatcher.load.takes(call, len(params)):
            return refuse(BUSY, "Too many calls are running. Try again later.")
        request.body = b""
        del body, params, members, arguments  # the call has its own data
        return _rest_reply(call, *await self._dispatcher.outcome(call), root)

    def _refuse(
        self, request: HttpRequest, name: str, kind: ProblemKind, detail: str, *, head: bytes = b""
    ) -> Response:
        """Charge a request for a tool that isn't called, and return its problem."""
        status = 0
        if (over := self._charge(request)) is not None:
            kind, detail, head, status = REFUSED, over.message, over.head, over.status
        self._note("tools/call", "rest", status=kind.slug, target=name, principal=request.principal)
        return problem(kind, detail, root_path=request.root_path, status=status, head=head)

    def _charge(self, request: HttpRequest) -> ProtocolError | None:
        """Charge a request that doesn't become a call. See `RequestLimits.charge`."""
        return self._dispatcher.services.request_limits.charge(request.principal, request.peer)

    async def describe(self, request: HttpRequest) -> Response:
        """`GET /openapi.json`, encoded on the first request and again after the tools change."""
        root = request.root_path
        registry = self._registry
        audience = registry.audience("tools", request.principal, partial(scopes_of, request.principal))
        page = registry.page("tools", NEWEST, None, audience)
        instructions = self._dispatcher.announcement.instruct(request)
        key = (root, audience, instructions)
        made_from, found = self._described.get(key, (b"", None))
        if found is None or made_from is not page:
            body = openapi.document(
                registry.visible("tools", audience).values(),
                self._dispatcher.info,
                instructions=instructions,
                root_path=root,
                tools_path=self._address.tools,
                mcp=self._mcp,
            )
            found = respond_with_tag(body, JSON_HEAD + b"cache-control: no-cache\r\n")
            self._described.keep(key, (page, found))
        return found(request)


def _is_json(request: HttpRequest) -> bool:
    """Return whether the body is JSON or has no declared type."""
    return carries_json(request.headers) or not (media_type(request.headers) or request.body)


def _is_call(request: HttpRequest) -> bool:
    """Return whether the body is JSON or has the default type of `curl -d`. A cross-site form submission is never a
    call.
    """
    return _is_json(request) or (media_type(request.headers) == _FORM and request.headers.keys().isdisjoint(_BROWSER))


def _read_envelope(body: bytes, method: str) -> _Envelope:
    """Decode a request body of the dialect.

    Raises:
        ProtocolError: The body isn't JSON, or contradicts its path.
    """
    require_json(body)
    try:
        envelope = _decode_envelope(body)
    except msgspec.ValidationError as exc:
        raise ProtocolError(INVALID_REQUEST, f"Invalid request: {exc}") from exc
    if envelope.params and bytes(envelope.params)[:1] != b"{":
        raise ProtocolError(INVALID_REQUEST, 'Invalid request: "params" must be an object')
    if envelope.jsonrpc != "2.0":
        raise ProtocolError(INVALID_REQUEST, 'Invalid request: "jsonrpc" must be "2.0"')
    if envelope.method not in ("", method):
        raise ProtocolError(INVALID_REQUEST, f'Invalid request: this path only accepts the method "{method}"')
    return envelope


def _rest_reply(call: Call, raw: bytes, error: ProtocolError | None, root: str) -> Response:
    if error is None:
        result = _decode_result(raw)
        if not result.is_error:
            body = bytes(result.structured) or b'{"content":%b}' % bytes(result.content)
            # The body is only the result, so headers have the URL of its resource updates (RFC 8288) and the note.
            lines = {} if call.tee is None else {"link": f'<{call.tee.url}>; rel="monitor"'}
            if call.meta and RAN_AT in call.meta:
                lines["idempotent_replayed"] = "true"
            return Response(body, 200, JSON_HEAD + header_lines(**lines)) if lines else Response(body)
        text = "\n".join(block.text for block in _decode_content(result.content) if block.text)
    elif error.code == MISSING_CLIENT_CAPABILITY:
        return problem(NEEDS_ANSWERS, NEEDS_ANSWERS.meaning, root_path=root)
    else:
        text = error.message
    if (failure := call.failure) is not None and (failure.incident or failure.refusal):
        status, head = (failure.refusal.status, failure.refusal.head) if failure.refusal else (0, b"")
        return problem(INTERNAL, text, root_path=root, status=status, incident=failure.incident, head=head)
    if error is not None and error.status >= 400:
        return problem(REFUSED, text, root_path=root, status=error.status, head=error.head)
    return problem(TOOL_ERROR, text or TOOL_ERROR.meaning, root_path=root)
