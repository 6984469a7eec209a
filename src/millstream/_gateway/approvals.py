"""The page and the REST API `/approvals`, where people answer requests for their approval.

A person needs a credential of their own: a header, or the sign-in cookie, which counts only on this server's own page.
The page works without scripts. It shows arguments as text and can't be framed.
"""

from pathlib import Path

from msgspec import structs

from millstream import Principal
from millstream._gateway.options.upstream import UpstreamConfig
from millstream._gateway.rules.requests import CHANNEL, ApprovalRequest, ApprovalRequests, is_approver
from millstream._http.message import HttpRequest, Response, header_lines, plain_problem, query_value
from millstream._parts import PartHost, Route
from millstream._server.calls.sealed_records import show_time
from millstream.auth import _pages as pages
from millstream.protocol import Json, encode

PAGE = "/approvals"
_TEMPLATE = Path(__file__).parent / "rules" / "templates" / "approvals.html"
_JSON = header_lines(content_type="application/json", cache_control="no-store")
_MAX_BODY = 4096
_ANSWERS = {"approve": True, "decline": False}


class ApprovalsPage:
    """Serves the page and the REST API, and lets only approvers follow the channel.

    Args:
        host: The running server.
        upstreams: The configurations in force.
        server: The server's title.
    """

    def __init__(self, host: PartHost, upstreams: list[UpstreamConfig], *, server: str) -> None:
        self._host, self._upstreams, self._server = host, upstreams, server
        self._requests = ApprovalRequests(host.services)
        if host.hub is not None:
            host.hub.admission.restrict(lambda principal, channel: channel != CHANNEL or self._is_approver(principal))
        host.routes.add(PAGE, Route({"GET": self.show}, reserved=True))
        host.routes.add_prefix(f"{PAGE}/", Route({"POST": self.answer}, reserved=True))

    def _is_approver(self, principal: Principal | None) -> bool:
        return any(is_approver(principal, [rule]) for each in self._upstreams for rule in each.asks_others)

    async def show(self, request: HttpRequest, notice: str = "", status: int = 200) -> Response:
        """Handle `GET /approvals`: list the requests that the caller can answer."""
        principal = request.principal
        found, unreadable = await self._requests.pending(principal)
        rows: list[Json] = [self._describe(each) for *_, each in found]
        unreadable *= self._is_approver(principal)
        if not _is_page(request):
            return Response(encode({"requests": rows, "unreadable": unreadable}), 200, _JSON)
        return pages.render(
            _TEMPLATE, status, root=f"{request.root_path}/", images=pages.IMAGES, server=self._server,
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
        status, text = await self._requests.answer(id, request.principal, self._find_version, approve=approve)
        if status != 200:
            return await self.show(request, text, status) if _is_page(request) else plain_problem(status, text)
        if _is_page(request):
            return Response(b"", 303, header_lines(location=request.root_path + PAGE, cache_control="no-store"))
        return Response(encode({"state": text}), 200, _JSON)

    def _describe(self, request: ApprovalRequest) -> Json:
        return {
            "id": request.id,
            "tool": request.tool,
            "set": request.set_name,
            "caller": structs.asdict(request.caller),
            "question": request.question,
            "expires": show_time(request.expires),
            "outdated": self._find_version(request) != request.version,
        }

    def _find_version(self, request: ApprovalRequest) -> str:
        everywhere = self._host.dispatcher.everywhere
        tools = [each.registry.tools for each in everywhere if each.address.name == request.set_name]
        return next((str(each[request.tool].version) for each in tools if request.tool in each), "")


def _is_page(request: HttpRequest) -> bool:
    return b"text/html" in request.headers.get(b"accept", b"")
