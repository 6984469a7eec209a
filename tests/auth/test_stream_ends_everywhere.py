import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import urlencode

import pytest
from uvicorn.server import ServerState

from account_parts import KeyFile, UserFile
from auth.issuing.test_workers import BACK, Shop
from auth.test_sign_in import FORM, OWN, cookie
from auth.test_stream_ends import KEPT, open_stream, rest_of
from auth_world import STREAM, GuardedServer
from cases import for_each
from four_workers import next_address
from http_peer import Peer, RunningServer
from issuing_world import VERIFIER
from patience import WAIT
from processes import free_port, run_command
from property_settings import NIGHTLY
from redis_parts import RedisServer
from workers_world import start_program

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("quick_hashes")]

PROGRAM = """
import os
from millstream import Server, auth

users = auth.users(file=os.environ["SHOP_USERS"])
watch = {"millstream:watch": "Watch the dashboard"}
issuer = auth.issuer(os.environ["SHOP_URL"], users=users, scope_descriptions=watch)
mcp = Server("shop", serve="all", auth=[issuer, auth.keys(file=os.environ["SHOP_KEYS"])])


@mcp.tool(scopes=["orders:write"])
async def order() -> str:
    return "ordered"
"""
SCOPES = "orders:write millstream:watch"
TIMES = 3
"""Streams of each kind at each server, enough to involve several workers."""


class World:
    """Servers that share a store, and their users."""

    def __init__(self, folder: Path, servers: int) -> None:
        self.folder = folder
        self.ports = [free_port() for _ in range(servers)]
        self.shop = Shop(f"http://127.0.0.1:{self.ports[0]}")
        self.keys = KeyFile(folder / "keys.json")
        self.users = UserFile(folder / "users.json")
        self.key = {name: self.keys.add(name, ("*",), time.time(), None) for name in ("other", "short", "changing")}
        for name in ("ada", "removed", "another-password"):
            self.users.add(name, "correct horse", ("*",), time.time())

    def tokens(self) -> tuple[str, Any]:
        """Sign Ada in; return a client and its tokens."""
        about = {"redirect_uris": [BACK], "token_endpoint_auth_method": "none",
                 "grant_types": ["authorization_code", "refresh_token"]}  # fmt: skip
        client = self.shop.json("/register", about)["client_id"]
        form = {"grant_type": "authorization_code", "code": self.shop.code(client, SCOPES), "code_verifier": VERIFIER}
        return client, self.shop.form("/token", client_id=client, **form)

    @asynccontextmanager
    async def asked(self) -> AsyncIterator[list[GuardedServer]]:
        """Yield each server; any worker may get a connection."""
        there = [RunningServer(ServerState(), port, source_address=next_address) for port in self.ports]
        try:
            yield [GuardedServer(cast("Any", None), cast("Any", None), each) for each in there]
        finally:
            for each in there:
                each.drop_connections()


@pytest.fixture(scope="module", params=["four workers", "two servers with Redis"][not NIGHTLY :])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Yield four workers with a local store, or two servers with two workers each on Redis."""
    apart = request.param != "four workers"
    world = World(tmp_path_factory.mktemp("shop"), 2 if apart else 1)
    (world.folder / "shop.py").write_text(PROGRAM)
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("SHOP_URL", world.shop.url)
        patch.setenv("SHOP_USERS", str(world.users.path))
        patch.setenv("SHOP_KEYS", str(world.keys.path))
        options = ["--workers", "4"]
        if apart:
            redis = RedisServer()
            stack.callback(redis.close)
            options = ["--workers", "2", "--store", redis.url]
        for port in world.ports:
            command = run_command(str(world.folder / "shop.py"), port, *options)
            stack.enter_context(start_program(command, port, world.folder / f"{port}.log"))
        yield world


class Listening:
    """Streams and sockets at every server."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self.ends: list[tuple[str, asyncio.Task[Any]]] = []
        """Open streams, and the tasks that wait for their end."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for _, task in self.ends:
            task.cancel()
        await asyncio.gather(*(task for _, task in self.ends), return_exceptions=True)
        await self._stack.aclose()

    async def open(self, servers: list[GuardedServer], credential: str, kinds: list[str] = KEPT) -> None:
        """Open streams of each kind with a key or token."""
        for server in servers * TIMES:
            for kind in kinds:
                self._hear(kind, await open_stream(server, credential, kind))
            for speaks in ("", "mcp"):
                socket = await self._stack.enter_async_context(server.socket(credential, speaks))
                self._ends(f"socket {speaks}", socket.wait_closed())

    async def open_as_page(self, servers: list[GuardedServer], jar: str) -> None:
        """Open a page's streams with its cookie."""
        for server in servers * TIMES:
            for kind in ("/events", "/dashboard/events"):
                peer = await server.send(None, "GET", kind, **{**STREAM, **OWN, "cookie": jar})
                assert (await peer.head())[0] == 200
                self._hear(kind, peer)
            own = {"cookie": jar, "origin": f"http://127.0.0.1:{server.running.port}"}
            socket = await self._stack.enter_async_context(server.socket(None, **own))
            self._ends("socket", socket.wait_closed())

    def _hear(self, kind: str, peer: Peer) -> None:
        self._ends(kind, rest_of(peer))

    def _ends(self, kind: str, end: Coroutine[Any, Any, Any]) -> None:
        self.ends.append((kind, asyncio.create_task(end)))

    async def left(self) -> list[str]:
        """Return the streams that are still open after the time limit."""
        await asyncio.wait([task for _, task in self.ends], timeout=WAIT)
        return self.open_now()

    def open_now(self) -> list[str]:
        """Return the open streams."""
        return [kind for kind, task in self.ends if not task.done()]


@asynccontextmanager
async def listening(world: World) -> AsyncIterator[tuple[list[GuardedServer], Listening]]:
    """Yield the servers, and the streams opened there. Another user's streams must stay open."""
    async with world.asked() as servers, Listening() as others, Listening() as opened:
        await others.open(servers, world.key["other"], ["/events"])
        yield servers, opened
        assert len(others.open_now()) == len(others.ends)


async def test_token_revocation_ends_its_streams_on_all_workers(world: World) -> None:
    """RFC 7009 §2.1."""
    async with listening(world) as (servers, opened):
        client, given = await asyncio.to_thread(world.tokens)
        await opened.open(servers, given["access_token"])
        assert len(opened.open_now()) == len(opened.ends)
        await asyncio.to_thread(world.shop.form, "/revoke", client_id=client, token=given["refresh_token"])
        assert await opened.left() == []


async def test_key_revocation_ends_its_streams_on_all_workers(world: World) -> None:
    async with listening(world) as (servers, opened):
        await opened.open(servers, world.key["short"])
        await opened.open_as_page(servers, await cookie(servers[0], world.key["short"]))
        assert len(opened.open_now()) == len(opened.ends)
        world.keys.remove("short")
        assert await opened.left() == []


async def test_key_replacement_ends_its_streams_on_all_workers(world: World) -> None:
    async with listening(world) as (servers, opened):
        await opened.open(servers, world.key["changing"])
        world.keys.rotate("changing", time.time(), 0.0)
        assert await opened.left() == []


@for_each("name", ["removed", "another-password"])
async def test_lost_permission_ends_page_streams(world: World, name: str) -> None:
    async with listening(world) as (servers, opened):
        form = urlencode({"name": name, "password": "correct horse", "next": "/dashboard"}).encode()
        reply = await servers[0].ask(None, "POST", "/sign-in", form, **FORM, **OWN)
        assert reply.status == 303, reply
        await opened.open_as_page(servers, reply.headers[b"set-cookie"].split(b";")[0].decode())
        if name == "removed":
            world.users.remove(name)
        else:
            world.users.set_password(name, "correct battery", time.time())
        assert await opened.left() == []
