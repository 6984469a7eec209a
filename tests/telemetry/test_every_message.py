import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app_peer import ask
from cases import for_each
from fleet import Bind, Runtime
from millstream import Server, Settings
from millstream.protocol import NEWEST_HANDSHAKE
from patience import WAIT
from telemetry_parts import make_call, render
from wire import MemoryPipe, per_request, request

DATE = NEWEST_HANDSHAKE.date
INITIALIZE = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {"protocolVersion": DATE, "capabilities": {}, "clientInfo": {"name": "probe", "version": "7"}},
}  # fmt: skip


class World:
    """A server with everything enabled that logs every message, without a socket."""

    def __init__(self, server: Server, runtime: Runtime, capture: pytest.CaptureFixture[str]) -> None:
        self.server = server
        self.runtime = runtime
        self._capture = capture

    async def post(self, path: str, body: Any, **headers: str) -> dict[bytes, bytes]:
        """Send a POST request and return the headers of the reply."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = await ask(self.server, "POST", path, data, **{"content_type": "application/json", **headers})
        return reply.headers

    async def socket(self, *messages: str) -> None:
        """Send messages of the dialect, each after the reply to the one before."""
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        inbox.put_nowait({"type": "websocket.connect"})
        outbox: asyncio.Queue[Any] = asyncio.Queue()
        scope = {
            "type": "websocket", "path": "/ws", "headers": [(b"host", b"127.0.0.1")], "client": ("127.0.0.1", 1),
        }  # fmt: skip
        task = asyncio.create_task(self.server(scope, inbox.get, outbox.put))
        async with asyncio.timeout(WAIT):
            assert (await outbox.get())["type"] == "websocket.accept"
            await outbox.get()
            for message in messages:
                inbox.put_nowait({"type": "websocket.receive", "text": message})
                await outbox.get()
            inbox.put_nowait({"type": "websocket.disconnect", "code": 1000})
            await task

    def lines(self) -> list[dict[str, Any]]:
        """Return the log lines since the last call."""
        assert self.runtime.host.observer is not None
        self.runtime.host.observer.close()
        shown = [json.loads(line) for line in self._capture.readouterr().err.splitlines() if line.startswith("{")]
        return [line for line in shown if line["logger"] == "millstream.access"]

    def brief(self) -> list[tuple[str, str, str, str]]:
        """Return method, target, status, and transport of each line."""
        return [(line["method"], line["target"], line["status"], line["transport"]) for line in self.lines()]

    def metrics(self) -> str:
        """Return the metrics text."""
        assert self.runtime.host.observer is not None
        return render(self.runtime.host.observer.registry).decode()


@pytest.fixture
def capture(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    return capsys


@asynccontextmanager
async def world(capture: pytest.CaptureFixture[str], **settings: Any) -> AsyncIterator[World]:
    server = Server("seen", serve="all", settings=Settings(access_log=True, **settings))

    @server.tool
    async def add(a: int, b: int) -> int:
        return a + b

    @server.tool(requires={"sampling": {}})
    async def asks() -> str:
        return ""

    async with server.running() as runtime:
        yield World(server, runtime, capture)


async def test_initialize_log_line_has_session_client_and_revision(capture: pytest.CaptureFixture[str]) -> None:
    async with world(capture) as seen:
        sealed = (await seen.post("/mcp", INITIALIZE))[b"mcp-session-id"]
        await seen.post(
            "/mcp", {"jsonrpc": "2.0", "method": "notifications/initialized"}, mcp_session_id=sealed.decode()
        )
        pipe = MemoryPipe(seen.runtime.dispatcher)
        pipe.send(json.dumps(INITIALIZE).encode())
        first, second, third = seen.lines()
        for line in (first, second, third):
            assert (line["client"], line["revision"], line["status"]) == ("probe/7", DATE, "ok")
        assert first["session"] == second["session"] != ""
        assert third["session"] not in ("", first["session"])
        await pipe.close()


async def test_rejected_initialize_is_logged_with_its_code(capture: pytest.CaptureFixture[str]) -> None:
    wrong = {**INITIALIZE, "params": {}}
    async with world(capture) as seen:
        await seen.post("/mcp", wrong)
        pipe = MemoryPipe(seen.runtime.dispatcher)
        pipe.send(json.dumps(wrong).encode())
        assert seen.brief() == [("initialize", "", "-32602", "http"), ("initialize", "", "-32602", "memory")]
        await pipe.close()


PAGE = json.dumps(request("tools/list")).encode()
LISTEN = json.dumps(per_request("subscriptions/listen", {})).encode()
REFUSED = [
    ("/tools/nothing", b"{}", {}, ("tools/call", "nothing", "unknown-tool", "rest")),
    ("/tools/add", b'{"a":"x"}', {}, ("tools/call", "add", "invalid-arguments", "rest")),
    ("/tools/add", b"{", {}, ("tools/call", "add", "malformed-body", "rest")),
    ("/tools/add", b"{}", {"content_type": "text/plain"}, ("tools/call", "add", "unsupported-type", "rest")),
    ("/tools/asks", b"{}", {}, ("tools/call", "asks", "needs-answers", "rest")),
    ("/mcp/tools/call", b"{", {}, ("tools/call", "", "-32700", "rest")),
    ("/mcp/tools/list", b'{"method":"x"}', {}, ("tools/list", "", "-32600", "rest")),
    ("/mcp/tools/list", b"{}", {"content_type": "text/plain"}, ("tools/list", "", "415", "rest")),
    ("/publish", b"{", {}, ("hub/publish", "", "400", "http")),
    ("/publish", b'{"data":1}', {"content_type": "text/plain"}, ("hub/publish", "", "415", "http")),
    ("/publish", b'{"data":1,"channel":"a b"}', {}, ("hub/publish", "a b", "400", "http")),
    ("/publish", b'{"data":1,"channel":"$client.x"}', {}, ("hub/publish", "$client.x", "403", "http")),
    ("/publish", b'{"data":1,"channel":"news"}', {}, ("hub/publish", "news", "ok", "http")),
    ("/messages/?session_id=x", b"{}", {}, ("_other", "", "404", "sse")),
    ("/mcp", b"{}", {"content_type": "text/plain"}, ("_other", "", "415", "http")),
    ("/mcp", b"{", {}, ("_other", "", "-32700", "http")),
    ("/mcp", LISTEN, {"accept": "application/json"}, ("subscriptions/listen", "", "-32600", "http")),
    ("/mcp", b'{"jsonrpc":"2.0","id":1,"result":{}}', {}, ("response", "", "-32600", "http")),
]  # fmt: skip


@for_each(("path", "body", "headers", "line"), REFUSED, ids=[f"{each[0]}-{each[3][2]}" for each in REFUSED])
async def test_early_rejections_are_logged_with_the_reason(
    capture: pytest.CaptureFixture[str], path: str, body: bytes, headers: dict[str, str], line: tuple[str, ...]
) -> None:
    async with world(capture) as seen:
        await seen.post(path, body, **headers)
        assert seen.brief() == [line]


async def test_rejected_publications_are_logged(capture: pytest.CaptureFixture[str]) -> None:
    async with world(capture) as seen:
        seen.runtime.bind = Bind(loopback=False)
        await seen.post("/publish", b'{"data":1}')
        assert seen.brief() == [("hub/publish", "", "403", "http")]


async def test_calls_rejected_by_a_full_server_are_logged(capture: pytest.CaptureFixture[str]) -> None:
    async with world(capture, max_calls=1) as seen:
        seen.runtime.dispatcher.calls.add(make_call())
        for path in ("/tools/add", "/mcp/tools/call", "/mcp"):
            await seen.post(path, PAGE if path == "/mcp" else b"{}")
        seen.runtime.dispatcher.calls.clear()
        assert [(line["method"], line["status"]) for line in seen.lines()] == [
            ("tools/call", "busy"), ("tools/call", "-32000"), ("tools/list", "-32000"),
        ]  # fmt: skip


async def test_dialect_messages_are_logged_once(capture: pytest.CaptureFixture[str]) -> None:
    subscribe, unsubscribe = '{"type":"subscribe","channel":"news"}', '{"type":"unsubscribe","channel":"news"}'
    messages = [
        ('{"type":"subscribe","channel":"$client.x"}', ("hub/subscribe", "$client.x", "-32003")),
        ('{"type":"unsubscribe"}', ("hub/unsubscribe", "broadcast", "-32602")),
        ('{"type":"publish","data":1,"channel":7}', ("hub/publish", "", "-32602")),
        ('{"type":"publish","data":1}', ("hub/publish", "broadcast", "ok")),
        ('{"type":"ping"}', ("ping", "", "ok")),
        ('{"type":"nonsense"}', ("_other", "", "-32601")),
        ("{", ("_other", "", "-32700")),
        ('{"jsonrpc":"1.0"}', ("_other", "", "-32600")),
        ('{"type":"mcp_call","tool":"add","arguments":{"a":1,"b":2}}', ("tools/call", "add", "ok")),
        ('{"type":"mcp_call","tool":"add","arguments":7}', ("tools/call", "add", "tool_error")),
        ('{"type":"mcp_call"}', ("tools/call", "", "-32602")),
    ]
    async with world(capture) as seen:
        await seen.socket(subscribe, unsubscribe)
        assert seen.brief() == [(f"hub/{verb}", "news", "ok", "websocket") for verb in ("subscribe", "unsubscribe")]
        for message, line in messages:
            await seen.socket(message)
            assert seen.brief() == [(*line, "websocket")], message


async def test_every_batch_message_is_logged(capture: pytest.CaptureFixture[str]) -> None:
    batch = b'[{"jsonrpc":"2.0","method":"notifications/cancelled"},{"jsonrpc":"2.0","id":1,"result":{}},7]'
    told = [("notifications/cancelled", "ok"), ("response", "ok"), ("_other", "-32600")]
    async with world(capture) as seen:
        await seen.post("/mcp", batch)
        assert [(line["method"], line["status"]) for line in seen.lines()] == told
        pipe = MemoryPipe(seen.runtime.dispatcher)
        pipe.send(batch)
        await asyncio.wait_for(pipe.receive(), WAIT)
        assert [(line["method"], line["status"]) for line in seen.lines()] == told
        await pipe.close()


async def test_unmeasured_messages_are_not_in_histograms(capture: pytest.CaptureFixture[str]) -> None:
    async with world(capture) as seen:
        await seen.post("/mcp", INITIALIZE)
        await seen.post("/mcp", b"{")
        await seen.post("/tools/nothing", b"{}")
        await seen.post("/publish", b'{"data":1}')
        await seen.socket('{"type":"ping"}')
        shown = seen.metrics()
        assert "mcp_server_operation_duration_seconds_count" not in shown
        assert 'mcp_server_messages_total{mcp_method_name="hub/publish"} 1' in shown
        assert 'mcp_server_messages_total{error_type="unknown-tool",mcp_method_name="tools/call"} 1' in shown
        assert f'mcp_server_messages_total{{mcp_method_name="initialize",mcp_protocol_version="{DATE}"}} 1' in shown


async def test_unchecked_names_are_truncated(capture: pytest.CaptureFixture[str]) -> None:
    async with world(capture) as seen:
        await seen.post("/publish", {"data": 1, "channel": "x" * 100_000})
        await seen.post("/mcp/tools/call", {"params": {"name": "y" * 100_000}})
        assert all(len(line["target"]) < 300 for line in seen.lines())


async def test_rejected_hosts_and_origins_are_counted_and_logged_once_per_name(
    capture: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "millstream")
    async with world(capture) as seen:
        for _ in range(2):
            await seen.post("/mcp", INITIALIZE, host="shop.example")
            await seen.post("/mcp", INITIALIZE, origin="https://page.example")
        logged = [record.getMessage() for record in caplog.records if "Refused a request" in record.getMessage()]
        assert [line.split(".")[0] for line in logged] == [
            "Refused a request (421): This server doesn't serve Host 'shop",
            "Refused a request (403): Origin 'https://page",
        ]
        for status in ("421", "403"):
            assert f'mcp_server_messages_total{{error_type="{status}",mcp_method_name="_other"}} 2' in seen.metrics()
        for number in range(100):
            await seen.post("/mcp", INITIALIZE, host=f"shop{number}.example")
        assert sum("Refused a request" in record.getMessage() for record in caplog.records) == 64
