"""WebSockets of a person whose state a command keeps, behind several workers and machines."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import ClientSession
from mcp.client.sse import sse_client
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from account_parts import KeyFile
from patience import WAIT
from redis_monitor import Monitor
from redis_parts import RedisServer
from workers.test_machines import Machine, machine
from workers.test_state_of_callers import COMMAND, META, NAMES, PROGRAM, attempt, call
from workers_world import Program, kill, run_workers, until_async

pytestmark = pytest.mark.server

WITH_HUB = PROGRAM.replace('serve="rest"', 'serve="rest hub"')
WAITING = COMMAND.replace(
    '    elif method == "tools/call":\n',
    """    elif method == "tools/call":
        if params["name"] == "worker":
            import pathlib, time
            pathlib.Path("begun").touch()
            while not pathlib.Path("go").exists():
                time.sleep(0.01)
""",
)
"""Waits in the tool `worker` until there's a file."""
SERVICE_RESTART = 1012
GOING_AWAY = 1001
POLICY_VIOLATION = 1008
SIZE = 900_000
HANDSHAKE = b"""\
GET /ws HTTP/1.1\r
Host: 127.0.0.1\r
Authorization: Bearer the-key-of-ada-0123456789\r
Connection: Upgrade\r
Upgrade: websocket\r
Sec-WebSocket-Version: 13\r
Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r
\r
"""


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with closing(RedisServer()) as server:
        yield server


@contextmanager
def two_machines(folder: Path, store: str, program: str = WITH_HUB, **env: str) -> Iterator[tuple[Machine, Machine]]:
    with ExitStack() as stack:
        one, two = [stack.enter_context(machine(folder / each, store, program=program, **env)) for each in ("1", "2")]
        yield one, two


def open_socket(program: Program, person: str, *, speaks_mcp: bool = False, key: str = "", **options: Any) -> connect:
    """Connect a client of the library `websockets`."""
    return connect(
        f"ws://127.0.0.1:{program.port}/ws",
        additional_headers={"authorization": f"Bearer {key or f'the-key-of-{person}-0123456789'}"},
        subprotocols=[Subprotocol("mcp")] if speaks_mcp else None,
        open_timeout=WAIT,
        max_size=None,
        **options,
    )


async def ask(socket: ClientConnection, tool: str, **arguments: Any) -> str:
    """Call a tool and return its text, of a result or an error."""
    if socket.subprotocol == "mcp":
        params = {"name": tool, "arguments": arguments, "_meta": META}
        message: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    else:
        message = {"type": "mcp_call", "tool": tool, "arguments": arguments}
    await socket.send(json.dumps(message))
    return await receive(socket)


async def receive(socket: ClientConnection) -> str:
    """Return the text of the next result."""
    async with asyncio.timeout(WAIT):
        while "content" not in (message := json.loads(await socket.recv())).get("result", {}):
            assert message.get("type") == "connected", message
    return str(message["result"]["content"][0]["text"])


async def wait_closed(socket: ClientConnection) -> int | None:
    """Read until the socket is closed, and return the close code that the server has sent."""
    try:
        async with asyncio.timeout(WAIT):
            while True:
                await socket.recv()
    except ConnectionClosed as exc:
        return None if exc.rcvd is None else exc.rcvd.code


async def test_websockets_reach_one_process_whichever_worker_accepts_them(tmp_path: Path) -> None:
    (tmp_path / "desk.py").write_text(COMMAND)
    with run_workers(tmp_path, 2, program=WITH_HUB, cwd=tmp_path) as served:
        for name in NAMES:
            await call(served, name, "keep", value=f"of {name}")
        for speaks_mcp in (False, True):
            for name in NAMES:
                for _ in range(6):
                    async with open_socket(served, name, speaks_mcp=speaks_mcp) as socket:
                        assert await ask(socket, "read") == f"of {name}"
        async with open_socket(served, "ada") as socket:
            await ask(socket, "keep", value="over a socket")
        assert [await call(served, "ada", "read") for _ in range(6)] == ["over a socket"] * 6
        with pytest.raises(InvalidStatus, match="403"):
            await open_socket(served, "mallory")


async def test_handshakes_can_have_as_many_headers_at_each_worker(tmp_path: Path) -> None:
    (tmp_path / "desk.py").write_text(COMMAND)
    with run_workers(tmp_path, 2, program=WITH_HUB, cwd=tmp_path) as served:
        await call(served, "ada", "keep", value="hers")
        for count in range(90, 97):
            head = HANDSHAKE[:-2] + b"".join(b"x-%d: 1\r\n" % number for number in range(count)) + b"\r\n"
            found = set[bytes]()
            for _ in range(8):
                reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
                with closing(writer):
                    writer.write(head)
                    found.add((await reader.readline()).split()[1])
            assert len(found) == 1, (count, found)
        assert found == {b"431"}


async def test_websockets_reach_the_other_machine_and_are_closed_after_their_calls_when_either_stops(
    tmp_path: Path, redis: RedisServer
) -> None:
    with two_machines(tmp_path, redis.url) as (one, two):
        (one.program.folder / "desk.py").write_text(WAITING)
        await call(one.program, "ada", "keep", value="hers")
        await call(two.program, "bob", "keep", value="his")
        async with open_socket(two.program, "ada") as passed_on, open_socket(one.program, "bob") as coming:
            assert await ask(passed_on, "read") == "hers"
            assert await ask(coming, "read") == "his"
            waiting = asyncio.create_task(ask(passed_on, "worker"))
            await until_async((one.program.folder / "begun").exists)
            kill(two.program.process.pid, signal.SIGTERM)
            assert await wait_closed(coming) == GOING_AWAY  # the stopping machine had its state
            (one.program.folder / "go").touch()
            assert await waiting == str(one.program.process.pid)
            assert await wait_closed(passed_on) == GOING_AWAY  # the stopping machine accepted it
        async with open_socket(one.program, "ada") as socket:
            assert await ask(socket, "read") == "hers"


async def test_stopping_machine_passes_no_websocket_on(tmp_path: Path, redis: RedisServer) -> None:
    with two_machines(tmp_path, redis.url, MILLSTREAM_DRAIN_DELAY="2") as (one, two):
        await call(one.program, "ada", "read")
        port = two.program.port
        others = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        reader, writer = others[0]
        async with open_socket(two.program, "ada") as socket:
            assert await ask(socket, "read") == "nothing"
            kill(two.program.process.pid, signal.SIGTERM)
            assert await wait_closed(socket) == GOING_AWAY  # from now on, idle connections close after a while
        writer.write(HANDSHAKE)
        async with asyncio.timeout(WAIT):
            reply = await reader.read()
            assert reply == b"" or reply.startswith(b"HTTP/1.1 503 ")
            for _, each in others:
                each.close()
                await each.wait_closed()


async def test_handshake_that_is_passed_on_when_its_machine_ends_can_be_repeated(
    tmp_path: Path, redis: RedisServer
) -> None:
    with two_machines(tmp_path, redis.url, MILLSTREAM_DRAIN_TIMEOUT="0.5") as (one, two):
        await call(one.program, "ada", "keep", value="hers")
        assert await call(two.program, "ada", "read") == "hers"
        reader, writer = await asyncio.open_connection("127.0.0.1", two.program.port)
        kill(one.program.process.pid, signal.SIGSTOP)  # it doesn't answer the handshake
        try:
            with closing(writer):
                writer.write(HANDSHAKE)
                await writer.drain()
                kill(two.program.process.pid, signal.SIGTERM)
                async with asyncio.timeout(WAIT):
                    reply = await reader.read()
        finally:
            kill(one.program.process.pid, signal.SIGCONT)
        assert reply.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1\r\n" in reply.lower()


async def test_event_stream_ends_after_its_calls_when_the_machine_that_accepted_it_stops(
    tmp_path: Path, redis: RedisServer
) -> None:
    with two_machines(tmp_path, redis.url) as (one, two):
        (one.program.folder / "desk.py").write_text(WAITING)
        await call(one.program, "ada", "keep", value="hers")
        await call(two.program, "bob", "read")
        url = f"http://127.0.0.1:{two.program.port}/sse"
        ada, bob = [{"authorization": f"Bearer the-key-of-{each}-0123456789"} for each in ("ada", "bob")]
        async with (
            asyncio.timeout(WAIT),
            sse_client(url, ada) as streams,
            ClientSession(*streams) as session,
            httpx2.AsyncClient(headers=bob, timeout=WAIT) as http,
            http.stream("GET", url) as local,
        ):
            await session.initialize()
            await session.list_tools()  # else, the client does it after the call
            waiting = asyncio.create_task(session.call_tool("worker", {}))
            await until_async((one.program.folder / "begun").exists)
            kill(two.program.process.pid, signal.SIGTERM)
            async for _ in local.aiter_bytes():  # it ends when the machine has ended its other streams
                pass
            (one.program.folder / "go").touch()
            (content,) = (await waiting).content
            assert getattr(content, "text", "") == str(one.program.process.pid)
            await until_async(lambda: two.program.process.poll() is not None)


async def test_killed_holders_websockets_are_closed_and_their_caller_reads_of_the_loss_once(
    tmp_path: Path, redis: RedisServer
) -> None:
    with two_machines(tmp_path, redis.url) as (one, two):
        await call(one.program, "ada", "keep", value="hers")
        async with open_socket(two.program, "ada") as socket:
            assert await ask(socket, "read") == "hers"
            kill(one.program.process.pid)
            assert await wait_closed(socket) == SERVICE_RESTART
        async with open_socket(two.program, "ada") as socket:
            assert "lost its state" in await ask(socket, "read")
            assert [await ask(socket, "read") for _ in range(3)] == ["nothing"] * 3
        assert await call(two.program, "ada", "read") == "nothing"


async def test_frozen_workers_websockets_are_closed_when_another_one_has_served_their_caller(
    tmp_path: Path, redis: RedisServer
) -> None:
    with two_machines(tmp_path, redis.url) as (one, two):
        async with open_socket(one.program, "ada") as own, open_socket(two.program, "ada") as passed_on:
            assert await ask(own, "keep", value="old") == "old"
            assert await ask(passed_on, "read") == "old"
            kill(one.program.process.pid, signal.SIGSTOP)
            try:
                assert await wait_closed(passed_on) == SERVICE_RESTART
                assert "lost its state" in await attempt(two.program, "ada", "read")
                assert await call(two.program, "ada", "keep", value="new") == "new"
            finally:
                kill(one.program.process.pid, signal.SIGCONT)
            assert await wait_closed(own) == SERVICE_RESTART
        async with open_socket(one.program, "ada") as socket:
            assert await ask(socket, "read") == "new"


async def test_large_messages_pass_in_both_directions_to_a_client_that_reads_later(
    tmp_path: Path, redis: RedisServer
) -> None:
    text = "".join(chr(97 + number % 26) for number in range(SIZE))
    with two_machines(tmp_path, redis.url) as (one, two):
        await call(one.program, "ada", "read")
        async with open_socket(two.program, "ada", ping_interval=None) as socket:
            assert await ask(socket, "keep", value=text) == text
            message = json.dumps({"type": "mcp_call", "tool": "read"})
            for _ in range(20):  # the answers don't fit into all buffers on the way
                await socket.send(message)
            assert await call(two.program, "ada", "read") == text  # others don't wait
            for _ in range(20):
                assert await receive(socket) == text


async def test_removed_key_closes_a_websocket_whose_state_is_at_another_machine(
    tmp_path: Path, redis: RedisServer
) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key = keys.add("ada", (), 0, None)
    keys.add("bob", (), 0, None)
    program = WITH_HUB.replace("named_keys=KEYS", f"file={str(tmp_path / 'keys.json')!r}")
    with two_machines(tmp_path, redis.url, program) as (one, two):
        async with open_socket(one.program, "ada", key=key) as own, open_socket(two.program, "ada", key=key) as other:
            assert await ask(own, "keep", value="hers") == "hers"
            assert await ask(other, "read") == "hers"
            keys.remove("ada")
            assert await wait_closed(other) == POLICY_VIOLATION
            assert await wait_closed(own) == POLICY_VIOLATION
        with pytest.raises(InvalidStatus, match="403"):
            await open_socket(two.program, "ada", key=key)


async def test_limits_count_clients_and_not_the_machine_that_passes_their_websockets_on(
    tmp_path: Path, redis: RedisServer
) -> None:
    sizes = dict.fromkeys(("MILLSTREAM_MAX_BODY", "MILLSTREAM_MAX_MESSAGE"), "200000")
    limits = {**sizes, "MILLSTREAM_MAX_INCOMING_BYTES": "1000", "MILLSTREAM_MAX_CONNECTIONS_PER_ADDRESS": "3"}
    half = "x" * 60_000
    with two_machines(tmp_path, redis.url, **limits) as (one, two):
        await call(one.program, "ada", "read")
        async with AsyncExitStack() as stack:
            sockets = [
                await stack.enter_async_context(open_socket(two.program, "ada", local_addr=(f"127.0.0.{each}", 0)))
                for each in (2, 2, 2, 3, 3)
            ]
            ends = [asyncio.Event() for _ in sockets]
            first, second = '{"type":"mcp_call","tool":"keep","arguments":{"value":"' + half, half + '"}}'

            async def send(socket: ClientConnection, end: asyncio.Event) -> str:
                async def pieces() -> AsyncIterator[str]:
                    yield first
                    await end.wait()
                    yield second

                await socket.send(pieces())
                return await receive(socket)

            others = [asyncio.create_task(send(*each)) for each in zip(sockets[:2], ends[:2], strict=True)]
            assert [await ask(each, "read") for each in sockets[2:4]] == ["nothing"] * 2
            ends[4].set()
            assert await send(sockets[4], ends[4]) == 2 * half  # while the other address has used up its share
            for other, end in zip(others, ends[:2], strict=True):
                end.set()
                assert await other == 2 * half


async def test_open_websocket_does_not_use_the_store(tmp_path: Path, redis: RedisServer) -> None:
    with two_machines(tmp_path, redis.url) as (one, two):
        await call(one.program, "ada", "read")
        async with open_socket(two.program, "ada") as socket:
            await ask(socket, "read")
            with closing(Monitor(redis)) as monitor:
                for _ in range(20):
                    await ask(socket, "read")
                async with open_socket(two.program, "ada") as another:
                    await ask(another, "read")
                redis.ask("PING", "the end")
                commands = monitor.until("the end")
        assert not [each for each in commands if "holder:" in each]
