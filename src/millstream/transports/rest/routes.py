"""Tools for callers that know no MCP: the `/mcp/tools/*` dialect, and every tool as a plain REST operation.

The dialect (`POST /mcp/tools/list`, `POST /mcp/tools/call`) takes JSON-RPC bodies with anything left out that a short
script leaves out, and answers JSON-RPC. `POST /tools/{name}` takes the arguments as the body and answers with the
structured result, or with problem details (`problems.py`); `GET /openapi.json` describes these operations.

Neither can be asked a question or follow progress: notifications are dropped, and a tool that must ask fails and says
so. The dialect answers in the shape of the handshake era, the one that such scripts were written against.
"""

import hashlib

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from millstream.http.message import JSON_HEAD, Request, Response, client_id_of
from millstream.http.problems import (
    BUSY,
    INTERNAL,
    INVALID_ARGUMENTS,
    MALFORMED,
    NEEDS_ANSWERS,
    REFUSED,
    TOOL_ERROR,
    UNKNOWN_TOOL,
    WRONG_TYPE,
    Kind,
    problem,
)
from millstream.protocol.errors import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    MISSING_CLIENT_CAPABILITY,
    PARSE_ERROR,
    ProtocolError,
)
from millstream.protocol.jsonrpc import RequestId, check_text, encode, error_message, require_json
from millstream.protocol.metadata import Client
from millstream.protocol.principal import Principal
from millstream.protocol.revisions import NEWEST, NEWEST_HANDSHAKE
from millstream.server.calls.call import Call
from millstream.server.dispatch import Dispatcher
from millstream.server.features.tools import Tool
from millstream.server.functions.plan import ArgumentError, read_arguments
from millstream.transports.rest import openapi
from millstream.transports.streamable.post import Authenticate
from millstream.transports.streamable.sessions import refusal

TOOLS_PATH = openapi.TOOLS_PATH

_FORM = b"application/x-www-form-urlencoded"
_BROWSER = (b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest", b"sec-fetch-user")
_NOBODY = Client()
_DIALECT_TYPE = refusal(415, INVALID_REQUEST, "Unsupported media type: send content-type application/json")
_DIALECT_BUSY = refusal(503, -32000, "Too many calls are running: try again later", head=b"retry-after: 1\r\n")
_PLACEHOLDER = b'"id":0,'


class _Envelope(Struct, gc=False):
    """A body of the dialect. What is absent is fine; what is there must be right."""

    jsonrpc: str = "2.0"
    id: RequestId | None = None
    method: str = ""
    params: dict[str, Raw] | UnsetType = UNSET


class _Content(Struct, gc=False):
    text: str = ""


class _Result(Struct, gc=False):
    content: Raw = Raw(b"[]")
    structured: Raw = msgspec.field(default=Raw(b""), name="structuredContent")
    is_error: bool = msgspec.field(default=False, name="isError")


class _Error(Struct, gc=False):
    code: int
    message: str


class _Answer(Struct, gc=False):
    result: _Result | UnsetType = UNSET
    error: _Error | UnsetType = UNSET


class _Described(Struct, frozen=True):
    """The OpenAPI document, ready to be sent; and what is sent to those who have it (RFC 9110 §13.1.2)."""

    tag: bytes
    whole: Response
    unchanged: Response

    @classmethod
    def of(cls, body: bytes) -> "_Described":
        tag = b'"%b"' % hashlib.sha256(body).hexdigest()[:16].encode()
        head = b"etag: %b\r\ncache-control: no-cache\r\n" % tag
        return cls(tag, Response(body, 200, JSON_HEAD + head), Response(b"", 304, head))


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_content = msgspec.json.Decoder(list[_Content]).decode


class SilentLine:
    """A way back on which nothing travels: the reply is all that the caller gets."""

    __slots__ = ()
    asks = False

    async def send(self, message: bytes) -> None:
        """Drop it."""

    def push(self, message: bytes) -> bool:
        """Drop it."""
        return True

    async def interrupt(self, retry_ms: int | None) -> bool:
        """There is no way to come back for the rest."""
        return False


_SILENT = SilentLine()


class RestRoutes:
    """The handlers: `list_tools` and `call_tool` of the dialect, `run_tool` and `describe` of plain REST."""

    __slots__ = ("_busy_at", "_described", "_described_from", "_dispatcher", "_max_depth", "_note", "_registry",
                 "authenticate")  # fmt: skip

    def __init__(self, dispatcher: Dispatcher, *, authenticate: Authenticate | None = None) -> None:
        # Configuration
        settings = dispatcher.services.settings
        self._dispatcher = dispatcher
        self._registry = dispatcher.registry
        self._note = dispatcher.services.note
        self._busy_at = settings.max_calls
        self._max_depth = settings.max_depth
        self.authenticate = authenticate
        # Prepared
        self._described: dict[str, _Described] = {}
        self._described_from = b""
        """The list of tools that the documents were made from; the registry gives the same object until it changes."""

    # The dialect

    async def list_tools(self, request: Request) -> Response:
        """`POST /mcp/tools/list`."""
        return await self._dialect(request, "tools/list")

    async def call_tool(self, request: Request) -> Response:
        """`POST /mcp/tools/call`."""
        return await self._dialect(request, "tools/call")

    async def _dialect(self, request: Request, method: str) -> Response:
        refused = None if _is_call(request) else _DIALECT_TYPE
        if refused is None and self._busy():
            refused = _DIALECT_BUSY
        if refused is not None:
            self._note(method, "rest", status=str(refused.status))
            return refused
        request_id: RequestId | None = None
        try:
            principal = await self._principal(request)
            check_text(request.body, self._max_depth)
            body = request.body or b"{}"
            envelope = _read_envelope(body, method)
            request_id = envelope.id
        except ProtocolError as exc:
            self._note(method, "rest", status=str(exc.code))
            return Response(error_message(None, exc.code, exc.message, exc.data), max(exc.status, 400))
        call = Call(
            revision=NEWEST_HANDSHAKE,
            id=0 if request_id is None else request_id,
            method=method,
            client=_NOBODY,
            line=_SILENT,
            principal=principal,
            headers=request.headers,
            transport="rest",
            client_id=client_id_of(request.query),
            root_path=request.root_path,
            params=body if envelope.params is UNSET else encode(envelope.params),
        )
        request.cancel_on_disconnect = True
        answer = await self._dispatcher.call(call)
        return Response(answer if request_id is not None else answer.replace(_PLACEHOLDER, b"", 1), call.status)

    # Plain REST

    async def run_tool(self, request: Request) -> Response:
        """`POST /tools/{name}`: the body is the arguments, the reply is the structured result."""
        root, name = request.root_path, request.path.removeprefix(TOOLS_PATH)

        def refuse(kind: Kind, detail: str, status: int = 0) -> Response:
            self._note("tools/call", "rest", status=kind.slug, target=name, principal=principal)
            return problem(kind, detail, root_path=root, status=status)

        principal: Principal | None = None
        if self._busy():
            return refuse(BUSY, "Too many calls are running. Try again later.")
        if not _is_json(request):
            return refuse(WRONG_TYPE, "Send the arguments with content-type application/json.")
        try:
            principal = await self._principal(request)
        except ProtocolError as exc:
            return refuse(REFUSED, exc.message, exc.status if exc.status >= 400 else 0)
        tool = self._registry.tools.get(name)
        if tool is None:
            return refuse(UNKNOWN_TOOL, f"There is no tool {name[:128]!r}.")
        if tool.requires:
            return refuse(NEEDS_ANSWERS, f"The tool needs {', '.join(tool.requires)} of its client.")
        try:
            check_text(request.body, self._max_depth)
            _check_arguments(tool, request.body or b"{}")
        except ProtocolError as exc:
            return refuse(MALFORMED if exc.code == PARSE_ERROR else INVALID_ARGUMENTS, exc.message)
        call = Call(
            revision=NEWEST,
            id=0,
            method="tools/call",
            name=name,
            client=_NOBODY,
            line=_SILENT,
            principal=principal,
            # Parameter headers repeat arguments for MCP's routers; where there are headers, they are asked for.
            headers=None if tool.plan.headers else request.headers,
            transport="rest",
            client_id=client_id_of(request.query),
            root_path=request.root_path,
            params=encode({"name": name, "arguments": Raw(request.body or b"{}")}),
        )
        request.cancel_on_disconnect = True
        return _rest_reply(call, await self._dispatcher.call(call), root)

    async def describe(self, request: Request) -> Response:
        """`GET /openapi.json`, made when somebody first asks, and again when the tools have changed."""
        root = request.root_path
        page = self._registry.page("tools", NEWEST, None)
        if page is not self._described_from:
            self._described.clear()
            self._described_from = page
        found = self._described.get(root)
        if found is None:
            body = openapi.document(
                self._registry.tools.values(),
                self._dispatcher.info,
                instructions=self._dispatcher.instructions,
                root_path=root,
            )
            found = self._described[root] = _Described.of(body)
        known = request.headers.get(b"if-none-match", b"")
        return found.unchanged if found.tag in known else found.whole

    def _busy(self) -> bool:
        return self._dispatcher.running >= self._busy_at

    async def _principal(self, request: Request) -> Principal | None:
        return await self.authenticate(request) if self.authenticate is not None else None


def _media_type(request: Request) -> bytes:
    """The declared type without parameters; empty when none is, ``?`` for a body with a content coding."""
    headers = request.headers
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        return b"?"
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


def _is_json(request: Request) -> bool:
    """JSON, or nothing at all."""
    declared = _media_type(request)
    return declared == b"application/json" or (not declared and not request.body)


def _is_call(request: Request) -> bool:
    """JSON, or what `curl -d` claims its JSON to be; a form that a page submits cross-site is never a call."""
    return _is_json(request) or (_media_type(request) == _FORM and request.headers.keys().isdisjoint(_BROWSER))


def _read_envelope(body: bytes, method: str) -> _Envelope:
    """Open a body of the dialect.

    Raises:
        ProtocolError: it is not JSON, or says something else than its path.
    """
    require_json(body)
    try:
        envelope = _decode_envelope(body)
    except msgspec.ValidationError as exc:
        raise ProtocolError(INVALID_REQUEST, f"Invalid request: {exc}") from exc
    if envelope.jsonrpc != "2.0":
        raise ProtocolError(INVALID_REQUEST, 'Invalid request: "jsonrpc" must be "2.0"')
    if envelope.method not in ("", method):
        raise ProtocolError(INVALID_REQUEST, f'Invalid request: this path serves the method "{method}"')
    return envelope


def _check_arguments(tool: Tool, raw: bytes) -> None:
    """Tell arguments that do not fit apart from a tool that says no: both are tool errors further on.

    Raises:
        ProtocolError: PARSE_ERROR, or INVALID_PARAMS with a text that says what to fix.
    """
    try:
        read_arguments(tool.plan, raw)
    except ArgumentError as exc:
        require_json(raw)
        raise ProtocolError(INVALID_PARAMS, str(exc)) from exc


def _rest_reply(call: Call, answer: bytes, root: str) -> Response:
    found = _decode_answer(answer)
    if found.error is not UNSET:
        return _rest_error(call, found.error, root)
    assert found.result is not UNSET  # noqa: S101  an answer has one of the two
    result = found.result
    if result.is_error:
        text = "\n".join(block.text for block in _decode_content(result.content) if block.text)
        return _failed(call, text, root) or problem(TOOL_ERROR, text or TOOL_ERROR.meaning, root_path=root)
    body = bytes(result.structured) or b'{"content":%b}' % bytes(result.content)
    if not call.stream_url:
        return Response(body)
    # RFC 8288: the body is the result alone, so a header says where to listen.
    return Response(body, 200, JSON_HEAD + b'link: <%b>; rel="monitor"\r\n' % call.stream_url.encode())


def _rest_error(call: Call, error: _Error, root: str) -> Response:
    if error.code == MISSING_CLIENT_CAPABILITY:
        return problem(NEEDS_ANSWERS, NEEDS_ANSWERS.meaning, root_path=root)
    failed = _failed(call, error.message, root)
    if failed is not None:
        return failed
    if call.status >= 400:
        return problem(REFUSED, error.message, root_path=root, status=call.status)
    return problem(TOOL_ERROR, error.message, root_path=root)


def _failed(call: Call, text: str, root: str) -> Response | None:
    """The problem of our own failure, of which the caller sees the incident only."""
    return problem(INTERNAL, text, root_path=root, incident=call.incident) if call.incident else None
