"""What the dashboard asks for beside its stream: history, recent calls, slow readers. Answers are made when asked."""

from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

from millstream._http.message import JSON_HEAD, Handler, Request, Response, query_value
from millstream._protocol.jsonrpc import encode

_HEAD = JSON_HEAD + b"cache-control: no-store\r\n"
_DAY = 86_400


class DashboardQueries(Protocol):
    """What answers the queries."""

    def history(self, seconds: int, method: str = "", name: str = "") -> Awaitable[dict[str, Any]]:
        """The last so many seconds."""
        ...

    def calls(self) -> Awaitable[dict[str, Any]]:
        """The newest calls, and the clients."""
        ...

    def readers(self) -> Awaitable[dict[str, Any]]:
        """The slowest readers."""
        ...


def query_handlers(queries: DashboardQueries) -> Mapping[str, Handler]:
    """The handlers for GET by path."""

    async def history(request: Request) -> Response:
        """``?seconds=`` up to a day; ``?method=`` and ``?name=`` for the points of one operation, too."""
        given = query_value("seconds", request.query)
        seconds = int(given) if given.isdecimal() and len(given) < 8 else 60
        method, name = query_value("method", request.query), query_value("name", request.query)
        return _reply(await queries.history(min(seconds, _DAY), method, name))

    async def calls(request: Request) -> Response:
        return _reply(await queries.calls())

    async def readers(request: Request) -> Response:
        return _reply(await queries.readers())

    return {"/dashboard/history": history, "/dashboard/calls": calls, "/dashboard/readers": readers}


def _reply(found: dict[str, Any]) -> Response:
    return Response(encode(found), 200, _HEAD)
