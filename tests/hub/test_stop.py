"""Programs can publish to subscribers while the server stops, before their streams close."""

import asyncio
import json
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from cases import for_each
from millstream import Server
from millstream.testing import connect as connect_here
from patience import WAIT
from processes import ROOT, free_port, run_command, uvicorn_command
from workers_world import Program, start_program, until_async

PROGRAM = ROOT / "examples" / "closing.py"


async def read_stream(port: int, ready: list[str]) -> list[str]:
    """Return the data of an event stream's events, once the server has closed it."""
    async with (
        httpx2.AsyncClient(timeout=WAIT) as http,
        http.stream("GET", f"http://127.0.0.1:{port}/events") as response,
    ):
        found = []
        async for line in response.aiter_lines():
            if line.startswith("id:"):
                ready.append("stream")
            if line.startswith("data: "):
                found.append(line.removeprefix("data: "))
        return found


async def read_socket(port: int, ready: list[str]) -> list[str]:
    """Return the data of a WebSocket's events, once the server has closed it."""
    found = []
    async with connect(f"ws://127.0.0.1:{port}/ws", proxy=None) as socket:
        await socket.send(json.dumps({"type": "subscribe", "channel": "broadcast"}))
        try:
            while True:
                message = json.loads(await socket.recv())
                if message["type"] == "subscribed":
                    ready.append("socket")
                if message["type"] == "event":
                    found.append(message["data"])
        except ConnectionClosed:
            return found


async def read_until_stopped(served: Program, *reads: Any) -> list[list[str]]:
    """Return what eight subscribers of each kind receive after the server gets SIGTERM."""
    ready: list[str] = []
    async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
        readers = [group.create_task(read(served.port, ready)) for read in reads * 8]
        await until_async(lambda: len(ready) >= len(readers))
        served.process.send_signal(signal.SIGTERM)
    return [reader.result() for reader in readers]


@pytest.mark.server
@for_each("workers", [1, 3])
async def test_subscribers_receive_what_is_published_while_the_server_stops(tmp_path: Path, workers: int) -> None:
    port = free_port()
    command = run_command(str(PROGRAM), port, "--workers", str(workers))
    with start_program(command, port, tmp_path / "log") as served:
        received = await read_until_stopped(served, read_stream, read_socket)
        assert served.process.wait(WAIT) == 0
    assert all(1 <= len(each) <= workers for each in received), received
    assert {text for each in received for text in each} == {"Back in a minute"}


@pytest.mark.server
async def test_event_streams_receive_what_is_published_while_uvicorn_stops(tmp_path: Path) -> None:
    """Uvicorn closes WebSockets itself, before the application knows that it stops."""
    port = free_port()
    command = uvicorn_command("closing:mcp", port, "--app-dir", str(PROGRAM.parent), "--log-level", "info")
    with start_program(command, port, tmp_path / "log", ready=False) as served:
        await until_async(lambda: "Uvicorn running" in served.log, "start")
        received = await read_until_stopped(served, read_stream)
    assert [len(each) for each in received] == [1] * 8


@asynccontextmanager
async def run_with_hooks(*hooks: Any) -> AsyncIterator[Server]:
    """Run a server whose lifespan registers functions for its end."""

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        for hook in hooks:
            server.hub.on_stop(hook)
        yield

    server = Server("shop", serve="hub", lifespan=lifespan)
    async with connect_here(server):
        yield server


async def test_functions_that_fail_or_hang_do_not_keep_a_server_from_stopping(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ran = []

    async def fail() -> None:
        ran.append("fail")
        raise OSError("no network")

    async def note() -> None:
        ran.append("note")

    async def hang() -> None:
        ran.append("hang")
        await asyncio.Event().wait()

    with caplog.at_level(logging.ERROR):
        async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
            await stack.enter_async_context(run_with_hooks(fail, note, hang))
            assert ran == []
    assert ran == ["fail", "note", "hang"]
    assert "no network" in caplog.text
