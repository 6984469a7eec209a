"""Queries of the dashboard besides its stream: history, recent calls, and slow readers."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from millstream._http.message import JSON_HEAD, Handler, HttpRequest, Response, query_value
from millstream._protocol.jsonrpc import encode

_HEAD = JSON_HEAD + b"cache-control: no-store\r\n"
_UNKNOWN_UPSTREAM = Response(b'{"error":"There is no such upstream."}', 404, _HEAD)


class QuerySource(Protocol):
    """The data source of the handlers."""

    def history(self, seconds: int, method: str = "", name: str = "") -> Awaitable[dict[str, Any]]:
        """Return the last `seconds` of history."""
        ...

    def calls(self) -> Awaitable[dict[str, Any]]:
        """Return the newest calls, with clients and errors."""
        ...

    def readers(self) -> Awaitable[dict[str, Any]]:
        """Return the slowest readers."""
        ...


def query_handlers(queries: QuerySource) -> Mapping[str, Handler]:
    """Return the GET handlers by path."""

    async def history(request: HttpRequest) -> Response:
        """Handle ``?seconds=`` up to an hour; ``?method=`` and ``?name=`` add the series of one operation."""
        text = query_value("seconds", request.query)
        seconds = int(text) if text.isdecimal() and len(text) < 8 else 60
        method, name = query_value("method", request.query), query_value("name", request.query)
        return _reply(await queries.history(seconds, method, name))

    async def calls(request: HttpRequest) -> Response:
        return _reply(await queries.calls())

    async def readers(request: HttpRequest) -> Response:
        return _reply(await queries.readers())

    return {"/dashboard/history": history, "/dashboard/calls": calls, "/dashboard/readers": readers}


def upstream_handlers(
    upstreams: Callable[[], Awaitable[list[dict[str, Any]]]],
    items: Callable[[str], dict[str, Any] | None],
    info: Mapping[str, str],
) -> Mapping[str, Handler]:
    """Return the GET handlers by path for the gateway page.

    Args:
        upstreams: returns state and statistics of each upstream.
        items: returns the items of an upstream; None if it's unknown.
        info: title and version of the server.
    """

    async def describe(request: HttpRequest) -> Response:
        return _reply({**info, "upstreams": await upstreams()})

    async def upstream_items(request: HttpRequest) -> Response:
        """Handle ``?upstream=``, the name of an upstream."""
        found = items(query_value("upstream", request.query))
        return _UNKNOWN_UPSTREAM if found is None else _reply(found)

    return {"/gateway/upstreams": describe, "/gateway/items": upstream_items}


def _reply(data: dict[str, Any]) -> Response:
    return Response(encode(data), 200, _HEAD)
