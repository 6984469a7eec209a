import asyncio
import logging
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from millstream import Context, LocalError, Server
from millstream._telemetry.logs import capture_logs
from patience import WAIT

HOST = "http://127.0.0.1"


def shop(**options: Any) -> Server:
    return Server("shop", serve="hub", **options)


def client(app: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=HOST)


async def events_of(server: Server, channel: str) -> list[bytes]:
    """Return the events of a channel."""
    return [event.data or b"" for event in await server.hub.history(channel)]


async def test_host_application_can_publish_before_the_first_request() -> None:
    server, app = shop(), FastAPI()

    @app.post("/sell")
    async def sell() -> int:
        return (await server.hub.publish("sales", "one")).subscribers

    app.mount("/", server)
    async with client(app) as http:
        assert (await http.post("/sell")).json() == 0
    assert await events_of(server, "sales") == [b"one"]
    await server.stop()


async def test_mounted_server_runs_in_its_hosts_lifespan() -> None:
    steps: list[str] = []

    @asynccontextmanager
    async def opened(server: Server) -> AsyncGenerator[str, None]:
        await server.hub.publish("life", "first")
        steps.append("open")
        try:
            yield "value"
        finally:
            await server.hub.publish("life", "last")
            steps.extend(part.decode() for part in await events_of(server, "life"))

    server = shop(lifespan=opened)

    @server.tool
    async def tells(ctx: Context) -> str:
        return str(ctx.lifespan)

    app = FastAPI(lifespan=server.lifespan)
    app.mount("/", server)
    async with asyncio.timeout(WAIT):
        async with app.router.lifespan_context(app), client(app) as http:
            assert steps == ["open"]
            body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "tells"}}
            assert "value" in (await http.post("/mcp", json=body)).text
            await server.hub.publish("life", "between")
        assert steps == ["open", "first", "between", "last"]


async def test_server_without_a_hub_explains_how_to_enable_it() -> None:
    with pytest.raises(LocalError, match=r"""'shop' serves no hub. Write Server\('shop', serve="hub"\)"""):
        _ = Server("shop", serve="rest").hub
    server = shop()
    with pytest.raises(LocalError, match="The first request or publication opens it"):
        server.hub.stats()
    await server.hub.publish("news", "x")
    assert server.hub.stats().published == 1
    await server.stop()


async def test_hub_statistics_are_readable_from_host_threads() -> None:
    server, seen = shop(), []
    await server.hub.publish("news", "x")
    thread = threading.Thread(target=lambda: seen.append(server.hub.stats().published))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert seen == [1]
    await server.stop()


async def test_errors_are_shown_without_logging_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(logging, "lastResort", logging._StderrHandler(logging.WARNING))
    server = Server("shop", serve="all")

    @server.tool
    async def fails() -> str:
        raise OSError("the shelf fell down")

    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "fails"}}
    async with client(server) as http:
        assert "Internal error" in (await http.post("/mcp", json=body)).text
    assert capsys.readouterr().err.count("OSError: the shelf fell down") == 1
    monkeypatch.setattr(root, "handlers", [*root.handlers, logging.StreamHandler(sys.stderr)])
    async with client(server) as http:
        await http.post("/mcp", json=body)
    assert capsys.readouterr().err.count("OSError: the shelf fell down") == 1
    await server.stop()
    assert len(root.handlers) == 1


async def test_errors_are_shown_once_for_several_servers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging, "lastResort", logging._StderrHandler(logging.WARNING))
    async with Server("shop", serve="all").running(), Server("store", serve="all").running():
        logging.getLogger("theirs").error("the shelf fell down")
        assert capsys.readouterr().err.count("the shelf fell down") == 1
    first, second = LogCollector(), LogCollector()
    stop_first, stop_second = capture_logs(first), capture_logs(second)
    stop_first()
    logging.getLogger("theirs").error("the other shelf fell down")
    stop_second()
    assert capsys.readouterr().err.count("the other shelf fell down") == 1
    assert (first.heard, second.heard) == ([], ["the other shelf fell down"])


class LogCollector(logging.Handler):
    """A handler that collects log messages."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())
