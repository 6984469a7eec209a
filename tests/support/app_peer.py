"""Requests to a whole server as an ASGI application, without a socket."""

import asyncio
from typing import Any, NamedTuple

from millstream import Server
from patience import WAIT


class Reply(NamedTuple):
    """The response to a request."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


async def ask(server: Server, method: str, target: str, body: bytes = b"", **headers: str) -> Reply:
    """Send one request. Keywords are headers: `content_type` is `content-type`."""
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    inbox.put_nowait({"type": "http.request", "body": body})
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    path, _, query = target.partition("?")
    named = {"host": "127.0.0.1", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http", "method": method, "path": path, "query_string": query.encode(), "client": ("127.0.0.1", 1),
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
    }  # fmt: skip
    await asyncio.wait_for(server(scope, inbox.get, send), WAIT)
    start, *rest = sent
    return Reply(start["status"], dict(start["headers"]), b"".join(message.get("body", b"") for message in rest))
