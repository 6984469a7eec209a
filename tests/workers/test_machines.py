"""Machines that reach each other at their `peer` addresses: any request of any client reaches any machine."""

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from millstream import Settings
from millstream._app.server_process.machines import make_contexts
from nats_parts import shared_url
from patience import WAIT
from processes import free_port, run_command
from redis_parts import RedisServer
from workers.test_state_of_callers import COMMAND, NAMES, PROGRAM, attempt, call, post
from workers_world import Program, kill, run_workers, start_program, until_async

pytestmark = pytest.mark.server

SECRET = "the-secret-of-both-machines-0123456789"
ACCEPT = "application/json, text/event-stream"
OPENING = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
KEY_OF_BOB = "Bearer the-key-of-bob-0123456789"

HANGING_COMMAND = r"""
import json, sys
from pathlib import Path

for line in sys.stdin:
    message = json.loads(line)
    method, params = message.get("method"), message.get("params", {})
    if method == "notifications/cancelled":
        Path("canceled").touch()
    elif method == "tools/call" and params["name"] == "hang":
        progress = {"progressToken": params["_meta"]["progressToken"], "progress": 1}
        print(json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": progress}), flush=True)
    elif "id" in message:
        tools = [{"name": name, "inputSchema": {"type": "object"}} for name in ("hang", "worker")]
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "desk"}}
        result |= {"tools": tools, "content": [{"type": "text", "text": "done"}]}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with closing(RedisServer()) as server:
        yield server


class Machine:
    """A gateway's processes on one machine, and its address for the others."""

    def __init__(self, program: Program, peer: int) -> None:
        self.program = program
        self.peer = peer


@contextmanager
def machine(folder: Path, store: str, workers: int = 1, *, program: str = PROGRAM, **env: str) -> Iterator[Machine]:
    folder.mkdir(parents=True)
    (folder / "desk.py").write_text(COMMAND)
    peer = free_port()
    env = {
        **os.environ,
        "MILLSTREAM_STORE": store,
        "MILLSTREAM_SECRET_KEY": SECRET,
        "MILLSTREAM_PEER": f"127.0.0.1:{peer}",
        **env,
    }
    with run_workers(folder, workers, program=program, cwd=folder, env=env) as served:
        yield Machine(served, peer)


@contextmanager
def two_machines(folder: Path, store: str, workers: int = 1, **env: str) -> Iterator[tuple[Machine, Machine]]:
    with machine(folder / "1", store, workers, **env) as one, machine(folder / "2", store, workers, **env) as two:
        yield one, two


class Caller:
    """A client's session, each request of which goes to the machine that the test names."""

    def __init__(self, person: str) -> None:
        self.person = person
        self.headers: dict[str, str] = {}

    async def begin(self, at: Machine) -> "Caller":
        message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": OPENING}
        reply = await post(at.program, self.person, "/mcp", message, accept=ACCEPT)
        self.headers = {"mcp-session-id": reply.headers["mcp-session-id"], "accept": ACCEPT}
        return self

    async def ask(self, at: Machine, tool: str, **arguments: Any) -> tuple[int, str]:
        params = {"name": tool, "arguments": arguments}
        message = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}
        reply = await post(at.program, self.person, "/mcp", message, **self.headers)
        if reply.status_code != 200:
            return reply.status_code, reply.text
        return 200, json.loads(reply.text.rpartition("data: ")[2])["result"]["content"][0]["text"]


@pytest.mark.parametrize(("store", "workers"), [("redis", 1), ("redis", 2), ("nats", 1)])
async def test_each_request_can_reach_the_other_machine(
    tmp_path: Path, redis: RedisServer, store: str, workers: int
) -> None:
    with two_machines(tmp_path, redis.url if store == "redis" else shared_url(), workers) as (one, two):
        for person in NAMES:
            await call(one.program, person, "keep", value=f"of {person}")
        for person in NAMES:
            found = [await call(each.program, person, "read") for each in (two, one) * 3]
            assert found == [f"of {person}"] * 6
        assert "of ada" in (await post(two.program, "ada", "/tools/read", {})).text
        session = await Caller("bob").begin(one)
        assert await session.ask(two, "read") == (200, "of bob")
        async with httpx2.AsyncClient(timeout=WAIT) as http:
            headers = {**session.headers, "accept": "text/event-stream", "authorization": KEY_OF_BOB}
            url = f"http://127.0.0.1:{two.program.port}/mcp"
            async with http.stream("GET", url, headers=headers) as stream:
                assert stream.status_code == 200
            thief = Caller("ada")
            thief.headers = session.headers
            assert (await thief.ask(two, "read"))[0] == 404
            assert (await http.delete(url, headers={**session.headers, "authorization": KEY_OF_BOB})).status_code == 204
        assert (await session.ask(one, "read"))[0] == 404
        assert "come to several machines" not in one.program.log + two.program.log


async def test_killed_machines_callers_lose_their_state_once(tmp_path: Path, redis: RedisServer) -> None:
    with two_machines(tmp_path, redis.url) as (one, two):
        await call(one.program, "ada", "keep", value="old")
        session = await Caller("bob").begin(one)
        await session.ask(one, "keep", value="old")
        kill(one.program.process.pid)
        assert "lost its state" in await attempt(two.program, "ada", "read")
        assert [await call(two.program, "ada", "read") for _ in range(3)] == ["nothing"] * 3
        assert "lost its state" in (await session.ask(two, "read"))[1]
        assert [await session.ask(two, "read") for _ in range(3)] == [(200, "nothing")] * 3


async def test_frozen_machines_callers_go_on_and_its_state_does_not_return(tmp_path: Path, redis: RedisServer) -> None:
    with two_machines(tmp_path, redis.url) as (one, two):
        await call(one.program, "ada", "keep", value="old")
        assert await call(two.program, "ada", "read") == "old"
        kill(one.program.process.pid, signal.SIGSTOP)
        try:
            reply = await post(two.program, "ada", "/tools/read", {})
            assert (reply.status_code, "may have taken effect" in reply.text) == (502, True)
            assert "lost its state" in await attempt(two.program, "ada", "read")
            assert await call(two.program, "ada", "keep", value="new") == "new"
        finally:
            kill(one.program.process.pid, signal.SIGCONT)
        async with asyncio.timeout(WAIT):
            while await attempt(one.program, "ada", "read") != "new":  # until it has noticed
                pass
        assert [await call(each.program, "ada", "read") for each in (one, two) * 3] == ["new"] * 6


async def test_machine_that_was_frozen_while_it_connected_to_another_does_not_take_that_for_cut_off(
    tmp_path: Path, redis: RedisServer
) -> None:
    with two_machines(tmp_path, redis.url) as (one, two):
        assert await call(one.program, "ada", "keep", value="hers") == "hers"
        holder, other = one.program.process.pid, two.program.process.pid
        kill(holder, signal.SIGSTOP)
        waiting = asyncio.create_task(attempt(two.program, "ada", "read"))
        try:
            connections = Path("/proc/net/tcp")
            await until_async(lambda: f":{one.peer:04X} 01 " in connections.read_text())
            kill(other, signal.SIGSTOP)
        finally:
            kill(holder, signal.SIGCONT)
        try:
            await asyncio.sleep(7.0)  # longer than its lease
        finally:
            kill(other, signal.SIGCONT)
        assert await waiting == "hers"
        assert [await call(each.program, "ada", "read") for each in (one, two) * 3] == ["hers"] * 6


async def test_frozen_worker_costs_its_siblings_callers_nothing(tmp_path: Path, redis: RedisServer) -> None:
    with two_machines(tmp_path, redis.url, workers=2) as (one, two):
        assert await call(one.program, "ada", "keep", value="hers") == "hers"
        (other,) = set(one.program.children()) - {int(await call(one.program, "ada", "worker"))}
        kill(other, signal.SIGSTOP)
        try:
            for _ in range(3):
                assert await asyncio.gather(*(call(two.program, "ada", "read") for _ in range(8))) == ["hers"] * 8
        finally:
            kill(other, signal.SIGCONT)


@asynccontextmanager
async def round_robin(ports: list[int]) -> AsyncIterator[int]:
    """Pass each connection to the next machine that accepts it, as a balancer does. Give the balancer's port."""
    turns, tasks = iter(range(10**9)), set[asyncio.Task[None]]()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in ports:
            try:
                inner = await asyncio.open_connection("127.0.0.1", ports[next(turns) % len(ports)])
            except OSError:
                continue
            for each in (pipe(reader, inner[1]), pipe(inner[0], writer)):
                tasks.add(asyncio.create_task(each))
            return
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def open_session(machines: list[Machine]) -> AsyncIterator[ClientSession]:
    """Connect the official client, whose requests reach the machines by turns."""
    async with round_robin([each.program.port for each in machines]) as port, AsyncExitStack() as stack:
        # Without connections that stay open, each request goes to another machine than the one before.
        limits = httpx2.Limits(max_keepalive_connections=0)
        http = httpx2.AsyncClient(headers={"authorization": KEY_OF_BOB}, limits=limits, timeout=WAIT)
        streams = await stack.enter_async_context(
            streamable_http_client(f"http://127.0.0.1:{port}/mcp", http_client=http)
        )
        session = await stack.enter_async_context(ClientSession(*streams))
        await session.initialize()
        yield session


@asynccontextmanager
async def connect(machines: list[Machine]) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Connect like `open_session`. Give a function that calls a tool."""
    async with open_session(machines) as session:

        async def ask(tool: str, **arguments: Any) -> str:
            result = await session.call_tool(tool, arguments)
            return result.content[0].text  # type: ignore[union-attr]

        yield ask


async def test_progress_and_cancellation_pass_between_machines(tmp_path: Path, redis: RedisServer) -> None:
    with two_machines(tmp_path, redis.url) as (one, two):
        for each in (one, two):
            (each.program.folder / "desk.py").write_text(HANGING_COMMAND)
        await call(one.program, "bob", "worker")  # it's at the first machine from now on
        async with open_session([two]) as session, asyncio.timeout(WAIT):
            begun = asyncio.Event()

            async def report(progress: float, total: float | None, message: str | None) -> None:
                begun.set()

            hanging = asyncio.create_task(session.call_tool("hang", {}, progress_callback=report))
            await begun.wait()  # while the call is running
            hanging.cancel()
            await until_async((one.program.folder / "canceled").exists)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_official_client_goes_on_when_a_machine_ends(
    tmp_path: Path, redis: RedisServer, number: signal.Signals
) -> None:
    with two_machines(tmp_path, redis.url) as (one, two):
        async with connect([one, two]) as ask:
            assert await ask("keep", value="mine") == "mine"
            assert [await ask("read") for _ in range(6)] == ["mine"] * 6
            holder = one if int(await ask("worker")) == one.program.process.pid else two
            kill(holder.program.process.pid, number)
            await until_async(lambda: holder.program.process.poll() is not None)
            assert "lost its state" in await ask("read")
            assert [await ask("read") for _ in range(6)] == ["nothing"] * 6


async def test_no_call_fails_while_machines_get_another_secret(tmp_path: Path, redis: RedisServer) -> None:
    new = "another-secret-of-both-machines-01234567"
    steps = [SECRET, f"{SECRET},{new}", f"{new},{SECRET}", new]
    for number, (before, after) in enumerate(pairwise(steps)):
        store = f"{redis.url}?prefix={number}:"
        with (
            machine(tmp_path / f"{number}-1", store, MILLSTREAM_SECRET_KEY=after) as one,
            machine(tmp_path / f"{number}-2", store, MILLSTREAM_SECRET_KEY=before) as two,
        ):
            for machines in ([one, two], [two, one]):
                async with connect(machines) as ask:
                    assert await ask("keep", value="mine") == "mine"
                    assert [await ask("read") for _ in range(6)] == ["mine"] * 6
                    assert await call(machines[1].program, "ada", "keep", value="hers") == "hers"
                    assert [await call(each.program, "ada", "read") for each in machines * 2] == ["hers"] * 4


async def test_only_machines_with_the_secret_can_use_the_port(tmp_path: Path, redis: RedisServer) -> None:
    other = b"another secret that is long enough"
    with two_machines(tmp_path, redis.url) as (one, two):
        anyone, foreign = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), make_contexts([other])[1]
        for context in (anyone, foreign):
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        for tls in (None, anyone, foreign):
            assert await talk(one.peer, tls, "GET /mcp") == b""
        right = make_contexts([SECRET.encode()])[1]
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}})
        paths = "/metrics", "/health", "/acceptor", "/", "/publish", "/ws"
        assert {(await talk(one.peer, right, f"GET {path}"))[9:12] for path in paths} == {b"404"}
        assert (await talk(one.peer, right, "POST /mcp", body, "millstream-worker: x"))[9:12] == b"421"
        assert (await talk(one.peer, right, "POST /mcp", body))[9:12] == b"401"  # the holder checks the credential
        assert await talk(one.peer, make_contexts([other])[1], "GET /mcp") == b""
        await call(one.program, "ada", "keep", value="mine")
        headers = {"millstream-worker": "x", "millstream-client": "http 6.6.6.6", "peer": f"127.0.0.1:{free_port()}"}
        assert "mine" in (await post(two.program, "ada", "/tools/read", {}, **headers)).text
        assert "6.6.6.6" not in one.program.log + two.program.log


async def talk(port: int, tls: ssl.SSLContext | None, line: str, body: str = "", *lines: str) -> bytes:
    """Return the beginning of a reply, or nothing if the connection ends."""
    head = [f"{line} HTTP/1.1", "host: 127.0.0.1", f"accept: {ACCEPT}", "content-type: application/json", *lines]
    name = None if tls is None else "millstream-peer"
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name)
        writer.write("\r\n".join([*head, f"content-length: {len(body)}", "", body]).encode())
        with closing(writer):
            return await asyncio.wait_for(reader.read(100), WAIT)
    except OSError:
        return b""


REPLACE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2]) end return 1"


async def test_notes_of_other_workers_are_ignored(tmp_path: Path, redis: RedisServer) -> None:
    with two_machines(tmp_path, redis.url) as (one, two):
        await call(one.program, "ada", "keep", value="mine")
        (key,) = (each for each in redis.ask("KEYS", "*") if b"roster:workers" in each)
        renewals, forged = set[float](), dict[str, str]()
        while len(renewals) < 6:  # until each worker has read that its note is the other's
            before: Any = redis.ask("GET", key)
            leases, dead, unswept, renewed, notes, *more = msgspec.msgpack.decode(before)
            renewals.add(renewed)
            forged = forged or dict(zip(notes, reversed(notes.values()), strict=True))
            after: Any = msgspec.msgpack.encode([leases, dead, unswept, renewed, forged, *more])
            redis.ask("EVAL", REPLACE, "1", key, before, after)  # a renewal in between isn't lost
        assert await call(two.program, "ada", "read") == "mine"


async def test_unfinished_handshakes_keep_no_machine_out(tmp_path: Path, redis: RedisServer) -> None:
    with two_machines(tmp_path, redis.url) as (one, two), ExitStack() as stack:
        await call(one.program, "ada", "keep", value="mine")
        for number in range(300):
            address = f"127.0.0.{8 + number % 5}"
            sock = socket.create_connection(("127.0.0.1", one.peer), source_address=(address, 0))
            stack.callback(sock.close)
            if number < 50:
                sock.send(b"no TLS")
        assert await call(two.program, "ada", "read") == "mine"


async def test_connections_that_arrive_together_are_all_served(tmp_path: Path, redis: RedisServer) -> None:
    with machine(tmp_path / "1", redis.url) as one:
        tls = make_contexts([SECRET.encode()])[1]

        async def ask() -> bytes:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", one.peer, ssl=tls, server_hostname="millstream-peer", ssl_handshake_timeout=WAIT
            )
            with closing(writer):
                writer.write(b"GET /nothing HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
                return await reader.readline()

        for _ in range(2):
            replies = await asyncio.gather(*(ask() for _ in range(300)))
            assert {each[:9] for each in replies} == {b"HTTP/1.1 "}


async def test_silent_connections_are_closed(tmp_path: Path, redis: RedisServer) -> None:
    with machine(tmp_path / "1", redis.url, MILLSTREAM_HEADER_TIMEOUT="1") as one:
        for tls in (None, make_contexts([SECRET.encode()])[1]):
            name = None if tls is None else "millstream-peer"
            reader, writer = await asyncio.open_connection("127.0.0.1", one.peer, ssl=tls, server_hostname=name)
            with closing(writer):
                assert await asyncio.wait_for(reader.read(), WAIT) == b""


async def test_machine_with_another_gateway_file_is_named(tmp_path: Path, redis: RedisServer) -> None:
    with ExitStack() as stack:
        programs = [stack.enter_context(run_gateway(tmp_path / name, redis.url)) for name in ("1", "2")]
        first, second = programs
        assert await find_troubles(first) == await find_troubles(second) == []
        file = second.folder / "gateway.toml"
        file.write_text('instructions = "Be brief."\n' + file.read_text())
        for program in programs:
            await until_it(program, has_trouble=True)
            (trouble,) = await find_troubles(program)
            assert trouble["what"] == "Machines use different gateway files"
            assert re.fullmatch(r"127\.0\.0\.1 uses \w{8}, and this one \w{8}", trouble["reason"])
            async with httpx2.AsyncClient() as http:
                assert (await http.get(f"http://127.0.0.1:{program.port}/readyz")).status_code == 200
        (first.folder / "gateway.toml").write_text(file.read_text())
        for program in programs:
            await until_it(program, has_trouble=False)
        second.wait_for_line("Machines use different gateway files")
        second.wait_for_line("All machines use the same gateway file.")


@contextmanager
def run_gateway(folder: Path, store: str) -> Iterator[Program]:
    folder.mkdir()
    (folder / "desk.py").write_text(COMMAND)
    (folder / "gateway.toml").write_text(f'[upstreams.desk]\ncommand = ["{sys.executable}", "desk.py"]\n')
    env = {"MILLSTREAM_STORE": store, "MILLSTREAM_SECRET_KEY": SECRET, "MILLSTREAM_PEER": "127.0.0.1"}
    command = [sys.executable, "-m", "millstream", "gateway", "gateway.toml", "--port", str(port := free_port())]
    with start_program(command, port, folder / "log", cwd=folder, env={**os.environ, **env}) as program:
        yield program


async def find_troubles(program: Program) -> list[Any]:
    async with httpx2.AsyncClient(timeout=WAIT) as http:
        return list((await http.get(f"http://127.0.0.1:{program.port}/health")).json()["troubles"])


async def until_it(program: Program, *, has_trouble: bool) -> None:
    async with asyncio.timeout(WAIT):
        while bool(await find_troubles(program)) is not has_trouble:  # noqa: ASYNC110  another process
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("address", ["0.0.0.0:7000", "::", "[::]:7000", "web-1", "10.0.0.5:", "fd00::5]"])
def test_addresses_that_no_machine_can_connect_to_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="one IP address"):
        Settings(peer=address)
    assert Settings(peer="[::1]:7000").peer == "[::1]:7000"


def test_peer_needs_a_secret_of_the_operator(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    env = {**os.environ, "MILLSTREAM_STORE": "redis://127.0.0.1:1", "MILLSTREAM_PEER": "127.0.0.1"}
    env.pop("MILLSTREAM_SECRET_KEY", None)
    command = run_command("shop.py", free_port())
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=WAIT, check=False)
    assert (done.returncode, "Set MILLSTREAM_SECRET_KEY to the same secret" in done.stderr) == (1, True)


def test_ports_in_use_are_named(tmp_path: Path, redis: RedisServer) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    (tmp_path / "desk.py").write_text(COMMAND)
    with ExitStack() as stack:
        with suppress(OSError):  # another program may use it
            stack.enter_context(socket.create_server(("127.0.0.1", 65535)))  # the only port of its range
        env = {"MILLSTREAM_STORE": redis.url, "MILLSTREAM_SECRET_KEY": SECRET, "MILLSTREAM_PEER": "127.0.0.1:65535"}
        command, env = run_command("shop.py", free_port()), {**os.environ, **env}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=WAIT, check=False)
        assert (done.returncode, "The ports from 65535 to 65535 are in use." in done.stderr) == (1, True)
        assert "with another port, or without one" in done.stderr


async def test_machines_reach_each_other_at_addresses_of_ipv6(tmp_path: Path, redis: RedisServer) -> None:
    with two_machines(tmp_path, redis.url, MILLSTREAM_PEER=f"[::1]:{free_port()}") as (one, two):
        assert await call(one.program, "ada", "keep", value="hers") == "hers"
        assert [await call(each.program, "ada", "read") for each in (two, one)] == ["hers"] * 2
        assert "lost" not in one.program.log + two.program.log
