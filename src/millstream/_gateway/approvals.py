"""The page and the REST API `/approvals`, where people answer requests for their approval, and the tool
`get_approved_result`, with which callers send approved calls. A call of it becomes a call of the tool that was approved
before any other gate sees it, so rules, limits, and the audit log are those of that tool.

A person needs a credential of their own: a header, or the sign-in cookie, which counts only on this server's own page.
The page works without scripts. It shows arguments as text and can't be framed.
"""

from collections.abc import Awaitable, Collection
from pathlib import Path
from typing import Protocol

from msgspec import Raw, structs

from millstream import LocalError
from millstream._gateway.options.upstream import UpstreamConfig
from millstream._gateway.rules.requests import (
    CHANNEL,
    GET_APPROVED_RESULT,
    AnswerRefused,
    ApprovalRequest,
    ApprovalRequests,
    find_version,
    is_any_approver,
)
from millstream._gateway.rules.results import has_companion
from millstream._http.message import HttpRequest, Response, header_lines, plain_problem, query_value
from millstream._parts import PartHost, Route
from millstream._protocol.admission import target_name
from millstream._protocol.jsonrpc import decode_members
from millstream._server.calls.call import Call
from millstream._server.calls.sealed_records import show_time
from millstream._server.functions.plan import ArgumentError
from millstream._server.handlers import redirect
from millstream.auth import _pages as pages
from millstream.protocol import MALFORMED, Json, encode

PAGE = "/approvals"
_TEMPLATE = Path(__file__).parent / "rules" / "templates" / "approvals.html"
_JSON = header_lines(content_type="application/json", cache_control="no-store")
_MAX_BODY = 4096
_NO_NAMES = (
    "approve.by needs callers who sign in, and nobody does over stdio. Serve this gateway over HTTP, or remove by, so "
    "that the person at the client approves."
)
_ANSWERS = {"approve": True, "decline": False}


class ApprovalsDefinition(Protocol):
    """The part of the server's definition that approvals use."""

    upstreams: list[UpstreamConfig]
    title: str


class ApprovalsPart:
    """Serves the page and the REST API, and lets only approvers follow the channel."""

    name: str = "approvals"
    needs: Collection[str] = ()

    def __init__(self, definition: ApprovalsDefinition) -> None:
        self._definition = definition

    async def open(self, host: PartHost) -> None:
        """Add the gate, and with HTTP the page.

        Raises:
            LocalError: Callers come over stdio, where they have no names.
        """
        if host.has_one_client:
            raise LocalError(_NO_NAMES)
        self._host, self._requests = host, ApprovalRequests(host.services)
        host.gate(self._redirect)
        host.on_http(self._serve)

    async def close(self) -> None:
        """Do nothing, because the host's routes end with the server."""

    def _redirect(self, call: Call) -> Awaitable[None] | None:
        if call.method != "tools/call" or call.tool is not None:
            return None
        name = call.name or target_name(call.method, call.params)
        return self._use_stored(call) if name == GET_APPROVED_RESULT and has_companion(call, name) else None

    async def _use_stored(self, call: Call) -> None:
        """Call the tool with the arguments of a caller's request. Otherwise, limits count the call as it is."""
        try:
            params = decode_members(call.params)
            own = call.dispatcher.registry.tools[GET_APPROVED_RESULT]
            id = own.read(params.get("arguments", b"")).request
        except (*MALFORMED, ArgumentError):
            return
        if (request := await self._requests.find_own(id, call)) is not None:
            call.collects = id
            redirect(call, params, request.tool, Raw(request.arguments))

    def _serve(self) -> None:
        host, upstreams = self._host, self._definition.upstreams
        if host.hub is not None:
            host.hub.admission.restrict(
                lambda principal, channel: channel != CHANNEL or is_any_approver(principal, upstreams), strict=True
            )
        host.routes.add(PAGE, Route({"GET": self.show}, reserved=True))
        host.routes.add_prefix(f"{PAGE}/", Route({"POST": self.answer}, reserved=True))

    async def show(self, request: HttpRequest, notice: str = "", status: int = 200) -> Response:
        """Handle `GET /approvals`: list the requests that the caller can answer."""
        principal = request.principal
        found, unreadable = await self._requests.pending(principal)
        rows: list[Json] = [self._describe(each) for *_, each in found]
        unreadable *= is_any_approver(principal, self._definition.upstreams)
        if not _is_page(request):
            return Response(encode({"requests": rows, "unreadable": unreadable}), 200, _JSON)
        return pages.render(
            _TEMPLATE, status, root=f"{request.root_path}/", images=pages.IMAGES, server=self._definition.title,
            notice=notice, rows=rows, unreadable=unreadable, who="" if principal is None else principal.subject,
        )  # fmt: skip

    async def answer(self, request: HttpRequest) -> Response:
        """Handle `POST /approvals/ID` with the form ``answer=approve`` or ``answer=decline``."""
        headers, body = request.headers, request.body
        if (b"origin" in headers or b"sec-fetch-site" in headers) and not pages.is_same_origin(request):
            return plain_problem(403, pages.cross_origin_text(request))
        approve = _ANSWERS.get(query_value("answer", body)) if len(body) <= _MAX_BODY else None
        if approve is None:
            return plain_problem(400, "The form must have answer=approve or answer=decline.")
        id = request.path.removeprefix(f"{PAGE}/")
        try:
            state = await self._requests.answer(id, request.principal, self._host.dispatcher, approve=approve)
        except AnswerRefused as exc:
            status, text = exc.status, str(exc)
            return await self.show(request, text, status) if _is_page(request) else plain_problem(status, text)
        if _is_page(request):
            return Response(b"", 303, header_lines(location=request.root_path + PAGE, cache_control="no-store"))
        return Response(encode({"state": state}), 200, _JSON)

    def _describe(self, request: ApprovalRequest) -> Json:
        return {
            "id": request.id,
            "tool": request.tool,
            "set": request.set_name,
            "caller": structs.asdict(request.caller),
            "question": request.question,
            "expires": show_time(request.expires),
            "outdated": find_version(request, self._host.dispatcher) != request.version,
        }


def _is_page(request: HttpRequest) -> bool:
    return b"text/html" in request.headers.get(b"accept", b"")
