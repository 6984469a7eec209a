import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from millstream import Settings
from millstream._http.message import HttpLimits
from millstream._http.server import LINGER, DrainTimes
from millstream._http.server.guard import ConnectionGuard, ServerState
from millstream._http.server.listener import ConnectionDrainer
from patience import WAIT
from processes import free_port, run_command
from workers_world import PROGRAM, Client, call, start_program, until_async, until_running, wait_until_refused


@pytest.mark.server
async def test_drain_closes_idle_connections_with_connection_close(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    port = free_port()
    command = run_command(str(tmp_path / "shop.py"), port)
    with start_program(command, port, tmp_path / "log") as served:
        idle, busy = Client(port), Client(port)
        await idle.request(call("who"))
        assert not (await busy.request(call("who"))).closes
        running = asyncio.create_task(busy.request(call("until_told")))
        await until_running(tmp_path)
        served.process.terminate()
        await until_async(lambda: idle.ended)
        await wait_until_refused(port)
        (tmp_path / "go").touch()
        reply = await running
        assert (reply.value, reply.closes) == ("done", True)
        assert await asyncio.to_thread(served.process.wait, WAIT) == 0
        await idle.close()


PAGES = """
from starlette.responses import PlainTextResponse, StreamingResponse
from millstream._app.server_process import over_http

over_http.AFTER_DRAIN = 0


@mcp.route("/page")
async def page(request):
    return PlainTextResponse(await until_told())


@mcp.route("/file")
async def file(request):
    async def parts():
        yield "half "
        yield await until_told()

    return StreamingResponse(parts())
"""


@pytest.mark.server
async def test_program_responses_finish_before_shutdown(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM + PAGES)
    port = free_port()
    environment = {**os.environ, "MILLSTREAM_DRAIN_TIMEOUT": "600"}
    with start_program(run_command(str(tmp_path / "shop.py"), port), port, tmp_path / "log", env=environment) as served:
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for (_, writer), path in zip(opened, ("/page", "/file"), strict=True):
            writer.write(f"GET {path} HTTP/1.0\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode())
        await opened[1][0].readuntil(b"half ")
        await until_running(tmp_path, 2)
        served.process.terminate()
        await wait_until_refused(port)
        (tmp_path / "go").touch()
        assert b"done" in await opened[0][0].read()
        assert b"done" in await opened[1][0].read()
        assert await asyncio.to_thread(served.process.wait, WAIT) == 0
        for _, writer in opened:
            writer.close()


@pytest.mark.server
async def test_server_is_not_ready_but_serves_during_the_delay(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    port = free_port()
    environment = {**os.environ, "MILLSTREAM_DRAIN_DELAY": "600"}
    command = run_command(str(tmp_path / "shop.py"), port)
    with start_program(command, port, tmp_path / "log", env=environment) as served:
        kept = Client(port)
        assert (await kept.request(path="/readyz")).status == 200
        served.process.send_signal(signal.SIGINT)
        while (await kept.request(path="/readyz")).status == 200:
            pass
        new = Client(port)
        for client in (kept, new):
            reply = await client.request(call("who"))
            assert (reply.value, reply.closes) == (served.process.pid, False)
        assert served.count_lines("It keeps serving for 600 s") == 1
        served.process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(served.process.wait, WAIT) == 130
        for client in (kept, new):
            await client.close()


class Peer:
    """A connection on the server's side of a real pair of sockets."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.idle = True
        self.arriving = self.answering = False
        self.announced = 0
        self.closed = False
        self.transport = self

    def announce_close(self) -> None:
        self.announced += 1

    def get_extra_info(self, name: str) -> Any:
        return {"socket": self.ours}[name]

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def peer() -> Iterator[Peer]:
    """Return an idle connection."""
    one = Peer()
    yield one
    one.ours.close()
    one.theirs.close()


def drainer(peer: Peer, clock: Callable[[], float]) -> ConnectionDrainer:
    """Return a drainer of this connection."""
    state = ServerState()
    state.connections.add(peer)
    loop = asyncio.new_event_loop()
    try:
        return ConnectionDrainer(state, ConnectionGuard(state, HttpLimits.of(Settings()), loop), clock)
    finally:
        loop.close()


def test_idle_connections_may_send_one_more_request(peer: Peer) -> None:
    now = [0.0]
    draining = drainer(peer, lambda: now[0])
    assert draining.close_idle(LINGER)
    assert peer.announced == 1
    now[0] = LINGER / 2
    assert draining.close_idle(LINGER)
    assert not peer.closed
    now[0] = LINGER
    assert not draining.close_idle(LINGER)
    assert peer.closed
    assert peer.announced == 1


def test_connections_with_a_received_request_are_not_closed(peer: Peer) -> None:
    draining = drainer(peer, lambda: 0.0)
    peer.theirs.send(b"POST /mcp HTTP/1.1\r\n")
    assert draining.close_idle(0.0)
    assert not peer.closed
    peer.ours.recv(100)
    assert not draining.close_idle(0.0)
    assert peer.closed


def test_busy_connections_are_not_closed(peer: Peer) -> None:
    draining = drainer(peer, lambda: 0.0)
    peer.idle = False
    assert not draining.close_idle(0.0)
    assert not peer.closed
    peer.arriving = True
    assert not draining.close_idle(0.0)
    assert not peer.closed
    assert draining.close_idle(1.0)


def test_drain_without_delay_closes_idle_connections_immediately() -> None:
    assert DrainTimes.for_stop(0.0) == DrainTimes(delay=0.0, linger=0.0)
    assert DrainTimes.for_stop(10.0) == DrainTimes(delay=10.0, linger=LINGER)
