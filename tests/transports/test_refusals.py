"""Each refusal of the table, at each way into the hub: HTTP, event streams, and WebSockets."""

import asyncio
import json
import logging
import re
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect

import millstream
from cases import for_each
from http_peer import serve
from millstream import Client, Server, Settings
from millstream._server.refusals import REFUSALS, find_refusal
from millstream.client import ServerError, ToolFailed
from millstream.hub import EventTooLarge, Forbidden, Hub, InvalidName, LimitExceeded
from millstream.stores import OwnerQuotaExceeded, StoreFull, StoreUnavailable
from patience import WAIT
from socket_world import ask, recv_json

RAISED: list[Exception] = [
    InvalidName("That isn't a name."),
    Forbidden("subscribe", "news"),
    EventTooLarge("That's too large."),
    LimitExceeded("channel", 1),
    StoreFull("10.1.2.3 is full"),
    OwnerQuotaExceeded("10.1.2.3 is full"),
    StoreUnavailable("10.1.2.3 is away"),
]
NAMES = [type(each).__name__ for each in RAISED]
FROM_THE_STORE = [each for each in RAISED if find_refusal(each)[0].is_trouble]


class Ways:
    """A running hub, an HTTP client, and a WebSocket with a subscription."""

    def __init__(self, runtime: Any, http: httpx2.AsyncClient, socket: ClientConnection) -> None:
        self.runtime = runtime
        self.http = http
        self.socket = socket

    async def check_socket(self, message: dict[str, Any], exc: Exception) -> str:
        """Send a request that is refused, and return the text. The socket and its subscription go on."""
        refusal, _ = find_refusal(exc)
        answer = await ask(self.socket, {**message, "id": 7})
        error = answer["error"]
        code = -32000 if refusal.can_retry else refusal.code
        data = {"retryAfterMs": 5_000} if refusal.can_retry else None
        assert (answer["type"], answer["id"], error["code"], error.get("data")) == ("error", 7, code, data)
        assert (await ask(self.socket, {"type": "ping"}))["type"] == "pong"
        return str(error["message"])

    async def check_delivery(self) -> None:
        """Publish to the socket's subscription, and see the event arrive."""
        sent = await self.http.post("/publish", json={"channel": "kept", "data": "still here"})
        assert sent.status_code == 200
        while (event := await recv_json(self.socket))["type"] != "event":
            pass
        assert event["data"] == "still here"


async def subscribe(socket: ClientConnection, channel: str) -> None:
    """Subscribe a socket to a channel."""
    message = await ask(socket, {"type": "subscribe", "channel": channel})
    while message["type"] == "position":
        message = await recv_json(socket)
    assert message["type"] == "subscribed"


@asynccontextmanager
async def hub_with_ways(store: str = "memory://") -> AsyncIterator[Ways]:
    """Serve a hub on a real socket."""
    server = Server("shop", serve="hub", store=store)
    async with server.running() as runtime, serve(server) as running:
        url = f"127.0.0.1:{running.port}"
        http = httpx2.AsyncClient(base_url=f"http://{url}", timeout=WAIT)
        async with http, connect(f"ws://{url}/ws", proxy=None, open_timeout=WAIT) as socket:
            assert (await recv_json(socket))["type"] == "connected"
            await subscribe(socket, "kept")
            yield Ways(runtime, http, socket)


def raising(exc: Exception) -> Any:
    """Return a coroutine function that raises an exception."""

    async def refuse(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(0)
        raise exc

    return refuse


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the incidents in the log."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]


def test_each_refusal_of_the_table_is_tried() -> None:
    assert set(REFUSALS) <= set(map(type, RAISED))


@for_each("exc", RAISED, ids=NAMES)
async def test_refusals_are_the_same_over_http_event_streams_and_sockets(
    exc: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusal, text = find_refusal(exc)
    retry = "5" if refusal.can_retry else None
    async with hub_with_ways() as ways:
        with monkeypatch.context() as patch:
            for method in ("publish", "members", "subscribe"):
                patch.setattr(Hub, method, raising(exc))
            publish = await ways.http.post("/publish", json={"channel": "news", "data": 1})
            members = await ways.http.get("/members", params={"channel": "news"})
            for reply in (publish, members):
                assert (reply.status_code, reply.headers.get("retry-after")) == (refusal.status, retry)
            published = publish.json()["detail"]
            assert members.json()["detail"] == text
            assert published.startswith(text)
            stream = await ways.http.get("/events?channel=news", headers={"accept": "text/event-stream"})
            fields = dict(line.split(": ", 1) for line in stream.text.splitlines() if line)
            told = {"status": refusal.status, "detail": text}
            assert (fields["event"], json.loads(fields["data"])) == ("unavailable", told)
            assert await ways.check_socket({"type": "publish", "channel": "news", "data": 1}, exc) == published
            for kind in ("members", "subscribe"):
                assert await ways.check_socket({"type": kind, "channel": "news"}, exc) == text
            assert "10.1.2.3" not in published
        await ways.check_delivery()
    assert errors(caplog) == []


@for_each("exc", FROM_THE_STORE, ids=[type(each).__name__ for each in FROM_THE_STORE])
@for_each("kind", ["memory", "sqlite"])
async def test_store_that_fails_is_reported_by_each_message_of_a_socket(
    exc: Exception, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with hub_with_ways("memory://" if kind == "memory" else f"sqlite:///{tmp_path}/hub.db") as ways:
        with monkeypatch.context() as patch:
            for part in (ways.runtime.store.log, ways.runtime.store.kv):
                for method in ("append", "read", "newest", "get", "get_many", "keys", "put", "compare_and_set"):
                    if hasattr(part, method):
                        patch.setattr(type(part) if hasattr(type(part), method) else part, method, raising(exc))
            said = await ways.check_socket({"type": "publish", "channel": "news", "data": 1}, exc)
            assert said.startswith("The store ")
            assert said.endswith("published.")
            await ways.check_socket({"type": "subscribe", "channel": "news", "history": 5}, exc)
            mailbox = await ways.http.get("/mcp/sse/phone", headers={"accept": "text/event-stream"})
            events = [line for line in mailbox.text.splitlines() if line.startswith("event:")]
            assert events == ["event: connected", "event: unavailable"]
            assert (await ask(ways.socket, {"type": "unsubscribe", "channel": "kept"}))["type"] == "unsubscribed"
        await subscribe(ways.socket, "kept")
        await ways.check_delivery()
    assert errors(caplog) == []


def make_shop(exc: Exception) -> Server:
    """Return a server whose functions fail."""
    mcp = Server("shop", serve=["rest", "hub"], settings=Settings(task_poll=0.001))

    @mcp.tool(task="allowed")
    async def order() -> str:
        """Order."""
        raise exc

    @mcp.resource("shop://list")
    async def listed() -> str:
        """List."""
        raise exc

    @mcp.prompt
    async def ask() -> str:
        """Ask."""
        raise exc

    @mcp.route("/page", public=True)
    async def page(request: Any) -> str:
        raise exc

    return mcp


def make_front(way: str, exc: Exception) -> tuple[Server, str]:
    """Return a server with the functions, and the path of its address."""
    shop = make_shop(exc)
    if way in ("direct", "set"):
        shop.add_set("/mcp/set", allow=["*"])
        return shop, "/mcp/set" if way == "set" else "/mcp"
    front = Server("front", serve=["rest", "hub"], settings=Settings(task_poll=0.001))
    front.upstream("up", shop, prefix="" if way == "relay" else "up", start_timeout=WAIT)
    return front, "/mcp"


async def error_of(work: Awaitable[object]) -> tuple[int, str]:
    """Return the code and text of a JSON-RPC error."""
    with pytest.raises(ServerError) as caught:
        await work
    return caught.value.code, caught.value.message


@for_each("exc", RAISED, ids=NAMES)
@for_each("way", ["direct", "set", "catalog", "relay"])
async def test_functions_are_refused_alike_by_each_transport_in_each_era(way: str, exc: Exception) -> None:
    refusal, text = find_refusal(exc, "The call {} completed. Try again later.")
    front, path = make_front(way, exc)
    async with serve(front) as running:
        base = f"127.0.0.1:{running.port}"
        http, socket, events = f"http://{base}{path}", f"ws://{base}{path}/ws", f"http://{base}{path}/sse"
        if path == "/mcp":
            socket, events = f"ws://{base}/ws", f"http://{base}/sse"
        targets = [(http, "2026-07-28"), (http, "2025-11-25"), (socket, "2025-11-25"), (events, "2025-06-18")]
        targets += [(front, each) for each in ("2026-07-28", "2025-11-25") if path == "/mcp"]
        for target, revision in targets:
            async with Client(target, revision=revision, timeout=WAIT) as client:
                name = (await client.tools())[0].name
                found = await client.call(name, raise_on_error=False)
                assert (found.is_error, found.text) == (True, text), (target, revision)
                handshake = revision < "2026"
                error = -32000 if handshake and refusal.can_retry else refusal.code, text
                uri, prompt = str((await client.resources())[0].uri), (await client.prompts())[0].name
                assert await error_of(client.read(uri)) == error, (target, revision)
                assert await error_of(client.prompt(prompt)) == error, (target, revision)
                if way == "direct" and not handshake:
                    with pytest.raises(ToolFailed) as failed:
                        await client.call(name, task=True)
                    assert failed.value.message == text
        tools = f"{path}/tools" if way == "set" else "/tools"
        async with httpx2.AsyncClient(base_url=f"http://{base}", timeout=WAIT) as rest:
            reply = await rest.post(f"{tools}/{name}", json={})
            # The result of an upstream's tool doesn't say why it failed.
            can_retry = refusal.can_retry and way in ("direct", "set")
            assert (reply.status_code, reply.json()["detail"]) == (503 if can_retry else 409, text)
            assert reply.headers.get("retry-after") == ("5" if can_retry else None)
            if way == "direct":
                page = await rest.get("/page")
                assert (page.status_code, page.json()["detail"]) == (refusal.status, find_refusal(exc)[1])


_PROGRAM = """
import sys

sys.path[:0] = {path!r}
from millstream import Server
from test_refusals import RAISED

mcp = Server("shop")


@mcp.tool
async def order(number: int) -> str:
    raise RAISED[number]


@mcp.resource("shop://{{number}}")
async def shelf(number: int) -> str:
    raise RAISED[number]


@mcp.prompt
async def ask(number: int) -> str:
    raise RAISED[number]


mcp.run("stdio")
"""


@pytest.mark.server
@for_each("revision", ["2026-07-28", "2025-11-25"])
async def test_programs_refuse_as_servers_do(revision: str, tmp_path: Path) -> None:
    program = tmp_path / "shop.py"
    program.write_text(_PROGRAM.format(path=[str(Path(__file__).parent), *filter(None, sys.path)]), "utf-8")
    async with Client([sys.executable, str(program)], revision=revision, timeout=WAIT) as client:
        for number, exc in enumerate(RAISED):
            refusal, text = find_refusal(exc, "The call {} completed. Try again later.")
            found = await client.call("order", number=number, raise_on_error=False)
            assert (found.is_error, found.text) == (True, text), exc
            error = -32000 if revision < "2026" and refusal.can_retry else refusal.code, text
            assert await error_of(client.read(f"shop://{number}")) == error, exc
            assert await error_of(client.prompt("ask", {"number": str(number)})) == error, exc


def test_transports_do_not_map_the_exceptions_of_the_table() -> None:
    """`refusals.py` has the only table, so that no transport forgets one of them."""
    package = Path(millstream.__file__).parent
    files = [*package.glob("_transports/**/*.py"), package / "_server/dispatch.py", package / "_app/user_routes.py"]
    for file in files:
        for caught in re.findall(r"except [^:\n]*|isinstance\([^\n]*", file.read_text("utf-8")):
            assert file.name in _KEEP_A_STREAM or not re.search("StoreFull|StoreUnavailable|LimitExceeded", caught)


_KEEP_A_STREAM = {"__init__.py", "http_sse.py"}
"""Files that catch exceptions of the store without reporting them to the sender."""
