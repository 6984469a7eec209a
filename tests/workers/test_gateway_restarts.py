"""Clients' sessions when a gateway restarts. Its upstreams at URLs use the official SDK, and go on."""

import asyncio
import itertools
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from nats_parts import shared_url
from patience import WAIT
from processes import NODE, ROOT, free_port
from redis_parts import RedisServer, shared_servers
from workers_world import Program, kill, run_workers, start_program, until, until_async

pytestmark = pytest.mark.server

UPSTREAMS = """
import asyncio, sys
import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from starlette.responses import JSONResponse

def make(name):
    program = MCPServer(name)

    @program.tool()
    def keep(value: str, ctx: Context) -> str:
        ctx.session._connection.kept = value
        return value

    @program.tool()
    def read(ctx: Context) -> str:
        return getattr(ctx.session._connection, "kept", "nothing")

    @program.tool()
    def count(ctx: Context) -> str:
        ctx.session._connection.count = getattr(ctx.session._connection, "count", 0) + 1
        return str(ctx.session._connection.count)

    @program.custom_route("/hello", methods=["GET"])
    async def hello(request):
        return JSONResponse("hello")

    return program


def note_ends(app):
    async def serve(scope, receive, send):
        if scope.get("method") == "DELETE":
            with open("ended", "ab") as ended:
                ended.write(b".")
        await app(scope, receive, send)

    return serve


async def main():
    for name, port, stateless in (("kept", sys.argv[1], False), ("free", sys.argv[2], True)):
        app = note_ends(make(name).streamable_http_app(stateless_http=stateless))
        serving = uvicorn.Server(uvicorn.Config(app, port=int(port), log_level="warning"))
        tasks.append(asyncio.create_task(serving.serve()))
        while not serving.started:
            await asyncio.sleep(0.01)
    open("ready", "w").close()
    await asyncio.gather(*tasks)


tasks = []
asyncio.run(main())
"""
COMMAND = r"""
import json, os, sys
for line in sys.stdin:
    message = json.loads(line)
    method, result = message.get("method"), {}
    if method == "initialize":
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "desk"}}
    elif method == "tools/list":
        result = {"tools": [{"name": "worker", "inputSchema": {"type": "object"}}]}
    elif method == "tools/call":
        result = {"content": [{"type": "text", "text": str(os.getppid())}]}
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""
PROGRAM = """
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from millstream import Server


@asynccontextmanager
async def lifespan(server):
    if Path("broken").exists():
        raise RuntimeError("the disk is full")
    yield


gateway = Server("front", lifespan=lifespan)
gateway.upstream("desk", [sys.executable, "{command}"], start_timeout={wait})
gateway.upstream("kept", "{url}", start_timeout={wait})
"""
OPENAPI = {
    "openapi": "3.1.0",
    "info": {"title": "api", "version": "1"},
    "paths": {"/hello": {"get": {"operationId": "hello", "responses": {"200": {"description": "ok"}}}}},
}
REVISION = "2025-11-25"
LOST = "This gateway has restarted, or has closed your session with the server 'kept' for another reason"
INTEROP = ROOT / "tests" / "interop"
CLIENTS = {
    "python-1": [str(ROOT / ".venv-mcp1" / "bin" / "python"), str(INTEROP / "calls_at.py")],
    "python-2": [sys.executable, str(INTEROP / "calls_at.py")],
    "typescript-1": [NODE, str(INTEROP / "calls_at.mjs"), str(ROOT / "tests" / "conformance"), "1"],
    "typescript-2": [NODE, str(INTEROP / "calls_at.mjs"), str(INTEROP), "2"],
}
KEYS = {"ada": "the-key-of-ada-0123456789", "bob": "the-key-of-bob-0123456789"}


class World:
    """The upstreams, and the tables of a gateway's file that names them."""

    def __init__(self, folder: Path, ports: tuple[int, int]) -> None:
        self.folder, self.kept_url = folder, f"http://127.0.0.1:{ports[0]}/mcp"
        (folder / "desk.py").write_text(COMMAND)
        (folder / "api.json").write_text(json.dumps({**OPENAPI, "servers": [{"url": f"http://127.0.0.1:{ports[1]}"}]}))
        kept, free = (f'url = "http://127.0.0.1:{port}/mcp"\nstart_timeout = {WAIT}\n' for port in ports)
        self.tables = {
            "desk": f'[upstreams.desk]\ncommand = ["{sys.executable}", "{folder}/desk.py"]\nstart_timeout = {WAIT}\n',
            "kept": f"[upstreams.kept]\n{kept}",
            "free": f"[upstreams.free]\n{free}",
            "api": f'[upstreams.api]\nopenapi = "{folder}/api.json"\n',
            "relay": f'[upstreams.kept]\nprefix = ""\n{kept}',
            "free relay": f'[upstreams.free]\nprefix = ""\n{free}',
        }

    def count_ended(self) -> int:
        """Return the number of sessions that were ended at the upstreams."""
        ended = self.folder / "ended"
        return ended.stat().st_size if ended.exists() else 0


@contextmanager
def run_upstreams(folder: Path, ports: tuple[int, int]) -> Iterator[Program]:
    (folder / "upstreams.py").write_text(UPSTREAMS)
    (folder / "ready").unlink(missing_ok=True)
    command = [sys.executable, str(folder / "upstreams.py"), *map(str, ports)]
    with start_program(command, ports[0], folder / "log", ready=False, cwd=folder) as upstreams:
        until((folder / "ready").exists, (folder / "log").read_text())
        yield upstreams


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, ports = tmp_path_factory.mktemp("upstreams"), (free_port(), free_port())
    with run_upstreams(folder, ports):
        yield World(folder, ports)


class Gateway:
    """A gateway in processes of its own."""

    served: Program

    def __init__(
        self, stack: ExitStack, world: World, folder: Path, *tables: str, workers: int, start: str = ""
    ) -> None:
        self._stack, self._world, self.folder, self._start = stack, world, folder, start
        self._workers, self.port = workers, free_port()
        self.write(*tables)
        self.run()

    def write(self, *tables: str) -> None:
        new = self.folder / "new.toml"
        new.write_text(self._start + "".join(self._world.tables[each] for each in tables))
        new.replace(self.folder / "gateway.toml")

    def run(self) -> None:
        command = [sys.executable, "-m", "millstream", "gateway", "gateway.toml", "--port", str(self.port)]
        command += ["--workers", str(self._workers)]
        program = start_program(command, self.port, self.folder / "log", cwd=self.folder)
        self.served = self._stack.enter_context(program)

    async def restart(self, number: signal.Signals) -> None:
        """Restart it with SIGHUP, or with another signal that ends it, and a new start."""
        children = set(self.served.children())
        self.served.process.send_signal(number)
        if number is signal.SIGHUP:
            await until_async(lambda: self.served.count_lines("The new version is serving") == 1)
            await until_async(lambda: children.isdisjoint(self.served.children()))
        else:
            await until_async(lambda: self.served.process.poll() is not None)
            self.run()

    @asynccontextmanager
    async def connect(self, key: str = "", **headers: str) -> AsyncIterator["Session"]:
        yield await Session(self.port, headers | ({"authorization": f"Bearer {key}"} if key else {})).begin()


class Session:
    """A session, in which each request has a connection of its own, so that any worker can get it, unless there's one
    for all of them.
    """

    def __init__(self, port: int, headers: dict[str, str], http: httpx2.AsyncClient | None = None) -> None:
        self.http = http
        self.url, self._ids = f"http://127.0.0.1:{port}/mcp", itertools.count(1)
        self.headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": REVISION, **headers}

    async def begin(self) -> "Session":
        params = {"protocolVersion": REVISION, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        reply = await self.post("initialize", params)
        self.headers["mcp-session-id"] = reply.headers["mcp-session-id"]
        return self

    async def post(self, method: str, params: Any) -> httpx2.Response:
        message = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}
        if self.http is not None:
            return await self.http.post(self.url, json=message, headers=self.headers)
        async with httpx2.AsyncClient(timeout=WAIT) as http:
            return await http.post(self.url, json=message, headers=self.headers)

    async def call(self, tool: str, **arguments: Any) -> str:
        """Return what a tool's caller reads, or the status of the failure."""
        reply = await self.post("tools/call", {"name": tool, "arguments": arguments})
        if reply.status_code != 200:
            return str(reply.status_code)
        data = reply.text.rpartition("data: ")[2] if reply.text.startswith(("id:", "data:", "event:")) else reply.text
        return str(json.loads(data)["result"]["content"][0]["text"])

    async def names(self) -> set[str]:
        reply = await self.post("tools/list", {})
        assert reply.status_code == 200, reply.text
        data = reply.text.rpartition("data: ")[2] if reply.text.startswith(("id:", "data:", "event:")) else reply.text
        return {each["name"] for each in json.loads(data)["result"]["tools"]}

    async def delete(self) -> int:
        async with httpx2.AsyncClient(timeout=WAIT) as http:
            return (await http.delete(self.url, headers=self.headers)).status_code


STORES: dict[str, Callable[[], str]] = {
    "memory": lambda: "memory://",
    "sqlite": lambda: "sqlite:///gateway.db",
    "redis": lambda: f"{shared_servers(RedisServer).url}?prefix=t{secrets.token_hex(6)}",
    "nats": shared_url,
}

FORGETFUL = signal.SIGTERM, "memory"
"""A restart after which the store doesn't know which sessions were used, nor which were deleted."""


async def check_state(session: "Session", tool: str, *, goes_on: bool, value: str = "mine") -> None:
    """Check what an upstream with sessions remembers for a caller after a restart."""
    if not goes_on:
        assert LOST in await session.call(tool)
    assert [await session.call(tool) for _ in range(4)] == [value if goes_on else "nothing"] * 4


@contextmanager
def run_gateway(
    world: World, folder: Path, *tables: str, workers: int = 2, store: str = "memory", start: str = ""
) -> Iterator[Gateway]:
    with ExitStack() as stack:
        start = f'store = "{STORES[store]()}"\n{start}'
        yield Gateway(stack, world, folder, *tables, workers=workers, start=start)


def restarts(*by_day: tuple[signal.Signals, int, str]) -> pytest.MarkDecorator:
    """Run a test for ways to restart a gateway: the signal, the number of workers, and the store. The others run at
    night, because each costs the processor time of several starts.
    """
    ways = dict.fromkeys([*by_day, *itertools.product((signal.SIGHUP, signal.SIGTERM), (2,), STORES)])
    cases = [
        pytest.param(*way, id=f"{way[0].name}-{way[1]}-{way[2]}", marks=() if way in by_day else pytest.mark.nightly)
        for way in ways
    ]
    return pytest.mark.parametrize(("number", "workers", "store"), cases)


@restarts((signal.SIGHUP, 2, "memory"), (signal.SIGTERM, 1, "redis"), (signal.SIGTERM, 1, "nats"))
async def test_sessions_go_on_after_a_restart_and_those_at_upstreams_if_the_store_outlives_it(
    world: World, tmp_path: Path, number: signal.Signals, workers: int, store: str
) -> None:
    tables = ("desk", "kept", "free", "api")
    with run_gateway(world, tmp_path, *tables, workers=workers, store=store) as gateway:
        async with AsyncExitStack() as stack:
            sessions = [await stack.enter_async_context(gateway.connect()) for _ in range(4)]
            before = await sessions[0].names()
            for session in sessions[:3]:
                assert await session.call("kept_keep", value="mine") == "mine"
                assert await session.call("free_read") == "nothing"
                assert await session.call("api_hello") == '"hello"'
                assert int(await session.call("desk_worker"))
            deleted = sessions.pop(2)
            assert await deleted.delete() == 204
            await gateway.restart(number)
            unused = sessions.pop()
            for session in sessions:
                assert await session.names() == before
                assert await session.call("free_read") == "nothing"
                assert await session.call("api_hello") == '"hello"'
                assert int(await session.call("desk_worker"))
                await check_state(session, "kept_read", goes_on=store != "memory")
                await session.call("kept_keep", value="again")
                assert await session.call("kept_read") == "again"
            if (number, store) != FORGETFUL:
                assert await unused.call("kept_read") == "nothing"
                assert await deleted.call("kept_read") == "404"


@restarts()
async def test_sessions_of_a_relay_go_on_after_a_restart(
    world: World, tmp_path: Path, number: signal.Signals, workers: int, store: str
) -> None:
    for table, lost in (("relay", True), ("free relay", False)):
        folder = tmp_path / table.replace(" ", "-")
        folder.mkdir()
        with run_gateway(world, folder, table, workers=workers, store=store) as gateway:
            async with gateway.connect() as session:
                assert await session.call("keep", value="mine") == "mine"
                await gateway.restart(number)
                assert await session.names() == {"keep", "read", "count"}
                if lost:
                    await check_state(session, "read", goes_on=store != "memory")
                else:
                    assert [await session.call("read") for _ in range(4)] == ["nothing"] * 4


@pytest.mark.nightly
async def test_sessions_without_state_at_upstreams_belong_to_no_worker(world: World, tmp_path: Path) -> None:
    with run_gateway(world, tmp_path, "desk", "api") as gateway:
        async with gateway.connect() as session:

            async def find_workers() -> set[str]:
                return {await session.call("desk_worker") for _ in range(12)}

            async with asyncio.timeout(WAIT):
                while len(await find_workers()) < 2:
                    pass
            gateway.write("desk", "api", "kept")
            await until_async(lambda: gateway.served.count_lines("Version 2 of ") == 2)
            assert await session.call("kept_keep", value="mine") == "mine"
            assert {await session.call("kept_read") for _ in range(12)} == {"mine"}
            assert len(await find_workers()) == 1


@asynccontextmanager
async def begin_at_another_worker(port: int, pid: int) -> AsyncIterator[Session]:
    """Begin a session at a worker with another pid, on a connection that stays open."""
    async with asyncio.timeout(WAIT):
        while True:
            async with httpx2.AsyncClient(timeout=WAIT) as http:
                session = await Session(port, {}, http).begin()
                if await session.call("desk_worker") != str(pid):
                    yield session
                    return


async def test_session_does_not_return_to_state_from_before_another_worker_served_it(
    world: World, tmp_path: Path
) -> None:
    program = PROGRAM.format(command=f"{world.folder}/desk.py", url=world.kept_url, wait=WAIT)
    env = {**os.environ, "MILLSTREAM_STORE": STORES["redis"]()}
    with run_workers(tmp_path, 2, program=program, cwd=tmp_path, env=env) as served:
        session = await Session(served.port, {}).begin()
        frozen = int(await session.call("desk_worker"))
        await session.call("kept_keep", value="first")
        ended = world.count_ended()
        async with begin_at_another_worker(served.port, frozen) as other:
            session.http = other.http
            kill(frozen, signal.SIGSTOP)
            try:
                assert await session.call("kept_read") == "502"
                assert LOST in await session.call("kept_read")
                assert await session.call("kept_keep", value="second") == "second"
            finally:
                kill(frozen, signal.SIGCONT)
            session.http = None
        await until_async(lambda: world.count_ended() > ended)  # by the worker that kept the first value
        assert [await session.call("kept_read") for _ in range(12)] == ["second"] * 12
        (tmp_path / "broken").touch()  # the next one can't be replaced
        kill(pid := int(await session.call("desk_worker")))
        await until_async(lambda: pid not in served.children())
        assert LOST in await session.call("kept_read")
        assert await session.call("kept_read") == "nothing"


@restarts((signal.SIGTERM, 1, "sqlite"))
async def test_another_principals_session_stays_unknown_after_a_restart(
    world: World, tmp_path: Path, number: signal.Signals, workers: int, store: str
) -> None:
    (tmp_path / "keys.json").write_text("{}")
    keys = {}
    for name in KEYS:
        command = [sys.executable, "-m", "millstream", "keys", "add", name, "--file", "keys.json"]
        process = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE)
        keys[name] = (await process.communicate())[0].decode().strip()
    start = '[settings]\nauth_keys = "keys.json"\n'
    with run_gateway(world, tmp_path, "kept", "desk", workers=workers, store=store, start=start) as gateway:
        async with gateway.connect(keys["ada"]) as ada, gateway.connect(keys["bob"]) as bob:
            await ada.call("kept_keep", value="Ada's")
            await gateway.restart(number)
            own, bob.headers["mcp-session-id"] = bob.headers["mcp-session-id"], ada.headers["mcp-session-id"]
            assert await bob.call("kept_read") == "404"
            await check_state(ada, "kept_read", goes_on=store != "memory", value="Ada's")
            if (number, store) != FORGETFUL:
                bob.headers["mcp-session-id"] = own
                assert await bob.call("kept_read") == "nothing"


@asynccontextmanager
async def start_client(name: str, port: int) -> AsyncIterator[Callable[[str], Awaitable[str]]]:
    """Run an official client, which keeps one session, and give a function that calls a tool in it."""
    process = await asyncio.create_subprocess_exec(
        *CLIENTS[name], f"http://127.0.0.1:{port}/mcp",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    writer, reader = process.stdin, process.stdout

    async def call(tool: str) -> str:
        writer.write(f"{tool}\n".encode())
        async with asyncio.timeout(WAIT):
            line = await reader.readline()
        return str(json.loads(line)) if line else f"{name} has ended"

    try:
        yield call
        writer.close()
        async with asyncio.timeout(WAIT):
            _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@restarts((signal.SIGHUP, 2, "memory"))
async def test_official_clients_go_on_in_their_sessions_after_a_restart(
    world: World, tmp_path: Path, number: signal.Signals, workers: int, store: str
) -> None:
    with run_gateway(world, tmp_path, "desk", "free", workers=workers, store=store) as gateway:
        async with AsyncExitStack() as stack:
            calls = {name: await stack.enter_async_context(start_client(name, gateway.port)) for name in CLIENTS}

            async def use() -> None:
                for name, call in calls.items():
                    assert (name, await call("free_read")) == (name, "nothing")
                    worker = await call("desk_worker")
                    assert worker.isdecimal(), (name, worker)

            await use()
            restarting = asyncio.ensure_future(gateway.restart(number))
            while number is signal.SIGHUP and not restarting.done():
                await use()
            await restarting
            for _ in range(3):
                await use()


NIGHTLY = [("relay", "sqlite"), ("kept", "redis"), ("kept", "nats")]


@pytest.mark.parametrize(
    ("table", "store"), [("kept", "sqlite"), *(pytest.param(*each, marks=pytest.mark.nightly) for each in NIGHTLY)]
)
async def test_official_clients_do_not_notice_a_restart_if_the_store_outlives_it(
    world: World, tmp_path: Path, table: str, store: str
) -> None:
    tool = "count" if table == "relay" else f"{table}_count"
    with run_gateway(world, tmp_path, table, store=store) as gateway:
        async with AsyncExitStack() as stack:
            calls = {name: await stack.enter_async_context(start_client(name, gateway.port)) for name in CLIENTS}
            assert {name: await call(tool) for name, call in calls.items()} == dict.fromkeys(CLIENTS, "1")
            await gateway.restart(signal.SIGTERM)
            for number in ("2", "3"):
                assert {name: await call(tool) for name, call in calls.items()} == dict.fromkeys(CLIENTS, number)


@pytest.mark.parametrize("table", ["relay", "kept"])
async def test_official_clients_go_on_after_an_upstream_has_restarted(tmp_path: Path, table: str) -> None:
    (folder := tmp_path / "upstreams").mkdir()
    ports = free_port(), free_port()
    world, tool = World(folder, ports), "count" if table == "relay" else f"{table}_count"
    with ExitStack() as running:
        upstreams = running.enter_context(run_upstreams(folder, ports))
        with run_gateway(world, tmp_path, table, workers=1) as gateway:
            async with AsyncExitStack() as stack:
                calls = {name: await stack.enter_async_context(start_client(name, gateway.port)) for name in CLIENTS}
                for number in ("1", "2"):
                    assert {name: await call(tool) for name, call in calls.items()} == dict.fromkeys(CLIENTS, number)
                kill(upstreams.process.pid)  # otherwise it waits for its open streams
                running.close()
                running.enter_context(run_upstreams(folder, ports))
                for name, call in calls.items():
                    said: list[str] = []
                    async with asyncio.timeout(WAIT):
                        while not said or not said[-1].isdecimal():
                            said.append(await call(tool))
                    assert said[-1] == "1", (name, said)
                    assert sum("lost its state" in text for text in said) == 1, (name, said)
                    assert await call(tool) == "2"
