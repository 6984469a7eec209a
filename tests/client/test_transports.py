import json
from collections.abc import Iterator
from typing import Any

import pytest

from cases import for_each
from client.feature_walk import FILE, walk
from millstream import Client
from millstream.client import ServerError
from millstream.protocol import BY_DATE, Envelope
from processes import SharedServer, run_command, share_server

pytestmark = pytest.mark.server

DATES = list(BY_DATE)
WAYS = [
    *[("http", "/mcp", "streamable-http", date) for date in (None, *DATES[1:])],
    *[("http", "/sse", "http+sse", date) for date in (None, *DATES[:-1])],
    *[("ws", "/ws", "websocket", date) for date in (None, *DATES)],
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    with share_server(
        lambda port: run_command(str(FILE), port, "--serve", "hub"), tmp_path_factory.mktemp("shop")
    ) as running:
        yield running


@for_each(("scheme", "path", "transport", "revision"), WAYS)
async def test_every_feature_works_over_every_transport(
    server: SharedServer, scheme: str, path: str, transport: str, revision: str | None
) -> None:
    await walk(f"{scheme}://127.0.0.1:{server.port()}{path}", revision, transport)


class Loop:
    """A transport of a program's own, which has only the required methods of the interface."""

    name = "loop"
    lost = False

    def new_transport(self, listener: object, background: object) -> "Loop":
        return self

    async def open(self) -> None: ...

    def set_revision(self, revision: object) -> None: ...

    async def send(self, message: bytes, method: str) -> None: ...

    async def close(self) -> None: ...

    async def exchange(self, request: Any) -> Any:
        if request.method == "server/discover":
            offer = {"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
            return Envelope(request.id, "", b"", result=json.dumps({**offer, "ttlMs": 0}).encode())
        return Envelope(request.id, "", b"", error=b'{"code":-32000,"message":"Closed on Sundays"}')


async def test_errors_pass_through_transports_of_a_program() -> None:
    target: Any = Loop()
    async with Client(target) as client:
        with pytest.raises(ServerError, match="Closed on Sundays"):
            await client.request("tools/list")
