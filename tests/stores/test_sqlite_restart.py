import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from patience import WAIT
from processes import free_port, run_command
from workers_world import start_program

pytestmark = pytest.mark.server

PROGRAM = """
from millstream import Context, Server

mcp = Server("shop", serve="hub")


@mcp.tool
async def steps(ctx: Context) -> str:
    for n in range(5):
        await ctx.progress(n, 5)
    return "done"


@mcp.tool
async def send(client: str, text: str) -> str:
    await mcp.hub.send(client, text)
    return "sent"
"""
Event = tuple[str, str]
"""Id and data."""


class Http:
    """An HTTP client of one server, with a new connection for each request."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.session = ""

    @contextmanager
    def _open(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=WAIT)
        given = {"accept": "application/json, text/event-stream", "content-type": "application/json", **headers}
        if self.session:
            given |= {"mcp-session-id": self.session, "mcp-protocol-version": "2025-11-25"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body).encode(), given)
            yield connection.getresponse()
        finally:
            connection.close()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> int:
        """Send a request and return the status."""
        with self._open(method, path, body, headers) as response:
            self.session = response.headers.get("mcp-session-id", self.session)
            response.read()
            return response.status

    def stream(self, method: str, path: str, last: str, body: Any = None, **headers: str) -> list[Event]:
        """Return the events up to the first with `last` in its data."""
        with self._open(method, path, body, headers) as response:
            assert response.status == 200, response.read()
            found: list[Event] = []
            name = data = ""
            while line := response.readline().decode().rstrip("\r\n") + "\n":
                field, _, value = line[:-1].partition(": ")
                if field == "id":
                    name = value
                elif field == "data":
                    data = value
                elif line == "\n":
                    found.append((name, data))
                    if last in data:
                        return found
                    data = ""
            raise AssertionError(found)


def request(method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


def tool(name: str, **arguments: str) -> dict[str, Any]:
    return request("tools/call", name=name, arguments=arguments, _meta={"progressToken": "t"})


INITIALIZE = request(
    "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo={"name": "t", "version": "1"}
)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_server_continues_where_it_was(tmp_path: Path, workers: int) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    store = f"sqlite:///{tmp_path}/store.db"

    def command(port: int) -> list[str]:
        return run_command(str(tmp_path / "shop.py"), port, "--store", store, "--workers", str(workers))

    port = free_port()
    with start_program(command(port), port, tmp_path / "first") as served:
        client, gone = Http(port), Http(port)
        for each in (client, gone):
            assert each.ask("POST", "/mcp", INITIALIZE) == 200
            assert each.ask("POST", "/mcp", {"jsonrpc": "2.0", "method": "notifications/initialized"}) == 202
        assert gone.ask("DELETE", "/mcp") in (200, 204)
        call = client.stream("POST", "/mcp", '"result"', tool("steps"))
        assert len(call) >= 6
        for n in range(5):
            assert client.ask("POST", "/publish", {"channel": "news", "data": f"news {n}"}) == 200
        news = client.stream("GET", "/events?channel=news&history=5", "news 4")
        assert client.ask("POST", "/mcp", tool("send", client="ann", text="for ann")) == 200
        served.process.kill()
        served.process.wait(WAIT)
    port = free_port()
    with start_program(command(port), port, tmp_path / "second"):
        session, client, dead = client.session, Http(port), Http(port)
        client.session, dead.session = session, gone.session
        assert dead.ask("POST", "/mcp", request("ping")) == 404
        assert client.ask("POST", "/mcp", request("ping")) == 200
        cut = next(n for n, (name, _) in enumerate(call) if name)
        again = client.stream("GET", "/mcp", '"result"', **{"last-event-id": call[cut][0]})
        assert [each for each in again if each[1]] == [each for each in call[cut + 1 :] if each[1]]
        (second,) = [name for name, data in news if "news 1" in data]
        after = client.stream("GET", "/events?channel=news", "news 4", **{"last-event-id": second})
        assert [data for _, data in after if data] == ["news 2", "news 3", "news 4"]
        mailbox = client.stream("GET", "/mcp/sse/ann", "for ann")
        assert [data for _, data in mailbox if "for ann" in data] == ["for ann"]
        assert client.ask("POST", "/publish", {"channel": "news", "data": "news 5"}) == 200
        more = client.stream("GET", "/events?channel=news", "news 5", **{"last-event-id": news[-1][0]})
        assert [data for _, data in more if data] == ["news 5"]
