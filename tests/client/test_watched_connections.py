"""Handshake-era connections that break while a client only watches: they're reopened, and the watcher is notified.

https://modelcontextprotocol.io/specification/2025-11-25/basic/transports. Servers run in their own processes, or are
rude ones on real sockets.
"""

import asyncio
import json
import sys
import textwrap
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from client.feature_walk import FILE, SUBSCRIBED
from client.misbehaving_servers import OFFER, ReceivedRequest, connected, misbehaving
from client.watch_parts import (
    AGAIN,
    NOTE,
    block_forever,
    count_gets,
    count_handshakes,
    count_subscriptions,
    session,
    until_other_than_again,
    wait_until,
)
from millstream import Client
from millstream.client import _watches as watching
from millstream.client._errors import ClientError, ConnectionLost
from millstream.client._server_messages import Change
from millstream.client._transports import EventReader, http
from millstream.client._watches import Changes
from patience import WAIT
from processes import free_port, run_command, run_server

# Real servers


WAYS = [("http", "/mcp", "2025-11-25"), ("http", "/mcp", "2025-03-26"), ("http", "/sse", "2024-11-05"),
        ("ws", "/ws", "2025-11-25")]  # fmt: skip


@contextmanager
def shop(port: int, folder: Path) -> Iterator[None]:
    with run_server(run_command(str(FILE), port, "--serve", "hub"), port, folder / "log"):
        yield


@asynccontextmanager
async def publishing(url: str) -> AsyncGenerator[None]:
    """Publish repeatedly, because the stand-alone stream may open late."""

    async def publish() -> None:
        async with Client(url) as client:
            while True:
                await client.call("publish")
                await asyncio.sleep(0.1)

    task = asyncio.create_task(publish())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(changes: Changes, wanted: Change) -> None:
    while await anext(changes) != wanted:
        pass


@pytest.mark.server
@pytest.mark.parametrize(("scheme", "path", "revision"), WAYS)
async def test_watchers_notice_a_restarted_server(
    scheme: str, path: str, revision: str, tmp_path: Path, short_backoff: None
) -> None:
    port = free_port()
    url = f"{scheme}://127.0.0.1:{port}{path}"
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(shop(port, tmp_path))
        async with asyncio.timeout(WAIT), Client(url, revision=revision) as client, client.watch(SUBSCRIBED) as changes:
            async with publishing(url):
                await until(changes, Change("resource", SUBSCRIBED))
            first.close()
            second.enter_context(shop(port, tmp_path))
            await until(changes, AGAIN)
            async with publishing(url):
                await until(changes, Change("resource", SUBSCRIBED))
            assert client.revision == revision


def timers(port: int) -> set[tuple[str, bool]]:
    """Return the timer of each connection to this port, and whether it ends within half a minute."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    here = [row[5].split(":") for row in rows if row[2].endswith(f":{port:04X}") and row[3] == "01"]
    return {(kind, int(left, 16) <= 3000) for kind, left in here}


@pytest.mark.server
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="only Linux shows the timers of connections")
@pytest.mark.parametrize(("path", "revision"), [*(way[1:] for way in WAYS[:3]), ("/mcp", "2026-07-28")])
async def test_tcp_keepalive_detects_dead_servers(path: str, revision: str, tmp_path: Path) -> None:
    port = free_port()
    with shop(port, tmp_path):
        url = f"http://127.0.0.1:{port}{path}"
        async with asyncio.timeout(WAIT), Client(url, revision=revision) as client, client.watch(SUBSCRIBED):
            await wait_until(lambda: timers(port) == {("02", True)})


MORTAL = """
    import json, sys
    from pathlib import Path

    lives = Path(sys.argv[1])
    lives.write_text(lives.read_text() + "x" if lives.exists() else "x")

    def say(**message):
        print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)

    GREETING = {"protocolVersion": "2025-11-25", "capabilities": {"resources": {"subscribe": True}},
                "serverInfo": {"name": "mortal", "version": "1"}}
    for line in sys.stdin:
        message = json.loads(line)
        if message["method"] == "initialize":
            say(id=message["id"], result=GREETING)
        elif message["method"] == "resources/subscribe":
            say(id=message["id"], result={})
            if len(lives.read_text()) < 3:
                sys.exit(1)
            say(method="notifications/resources/updated", params={"uri": "a://1"})
        elif "id" in message:
            say(id=message["id"], error={"code": -32601, "message": "Method not found"})
"""


@pytest.mark.server
async def test_watched_processes_are_restarted(tmp_path: Path, short_backoff: None) -> None:
    script = tmp_path / "mortal.py"
    script.write_text(textwrap.dedent(MORTAL))
    target = [sys.executable, str(script), str(tmp_path / "lives")]
    async with asyncio.timeout(WAIT), Client(target) as client, client.watch("a://1") as changes:
        assert await until_other_than_again(changes) == Change("resource", "a://1")
    assert (tmp_path / "lives").read_text() == "xxx"


@pytest.mark.server
async def test_watch_command_survives_a_server_restart(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/mcp"
    command = [sys.executable, "-c", "from millstream._cli import main; main()", "watch", url, SUBSCRIBED]
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(shop(port, tmp_path))
        process = await asyncio.create_subprocess_exec(
            *command, "--revision", "2025-11-25", stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(WAIT):
                assert (await process.stdout.readline()).startswith(b"Watching shop")
                first.close()
                second.enter_context(shop(port, tmp_path))
                while await process.stdout.readline() != b"changed\tagain\n":
                    pass
                async with publishing(url):
                    while (line := await process.stdout.readline()) == b"changed\tagain\n":
                        pass
                assert line == f"changed\tresource\t{SUBSCRIBED}\n".encode()
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def test_broken_connection_is_reported_once_to_watchers() -> None:
    sockets = 0

    async def talk(socket: ServerConnection) -> None:
        nonlocal sockets
        sockets += 1
        async for text in socket:
            message = json.loads(text)
            if message["method"] == "server/discover":
                await socket.send(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": OFFER}))
                continue
            about = {"_meta": {"io.modelcontextprotocol/subscriptionId": message["id"]}}
            for name in ("subscriptions/acknowledged", "tools/list_changed"):
                note = {"jsonrpc": "2.0", "method": f"notifications/{name}", "params": about}
                await socket.send(json.dumps(note))
            if sockets == 1:
                return

    told: list[Change] = []
    async with serve(talk, "127.0.0.1", 0, subprotocols=[Subprotocol("mcp")], close_timeout=1) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/ws"
        client = Client(url, revision="2026-07-28", on_change=told.append)
        async with asyncio.timeout(WAIT), client, client.watch(tools=True) as changes:
            heard = [await anext(changes) for _ in range(3)]
    assert heard == [Change("tools"), AGAIN, Change("tools")]
    assert AGAIN not in told


# Streamable HTTP: the stand-alone stream


@pytest.mark.parametrize("id", ["", "id: e1\n"], ids=["missed", "resumed"])
async def test_resumed_stream_reports_missed_changes(id: str, short_backoff: None) -> None:
    watched = asyncio.Event()

    async def streams(asked: ReceivedRequest) -> None:
        await asked.stream()
        await watched.wait()
        if count_gets(server) == 1:
            await asked.event(NOTE.replace(b"tools", b"prompts"), id)
            raise ConnectionError
        assert asked.headers.get("last-event-id", "") == ("e1" if id else "")
        await asked.event(NOTE)
        await block_forever()

    async with asyncio.timeout(WAIT), misbehaving(session(streams)) as server, Client(server.url) as client:
        async with client.watch() as changes:
            watched.set()
            heard = [await anext(changes)]
            while heard[-1] != Change("tools"):
                heard.append(await anext(changes))
        assert heard == [Change("prompts"), *([] if id else [AGAIN]), Change("tools")]
        assert count_handshakes(server) == 1


@pytest.mark.parametrize("id", ["", "id: e1\n"], ids=["missed", "resumed"])
async def test_reopened_streams_get_their_subscriptions_again(id: str, short_backoff: None) -> None:
    """A server may have lost them in a restart, and the changes until the client subscribed again."""

    async def streams(asked: ReceivedRequest) -> None:
        await asked.stream()
        if count_gets(server) == 1:
            await asked.event(NOTE, id)
            await wait_until(lambda: count_subscriptions(server) == 1)
            raise ConnectionError
        await block_forever()

    async with asyncio.timeout(WAIT), misbehaving(session(streams)) as server, Client(server.url) as client:
        async with client.watch("a://1") as changes:
            while count_subscriptions(server) < 2:
                assert await anext(changes) == AGAIN
        assert count_handshakes(server) == 1


async def test_watched_streams_are_reopened_every_time(short_backoff: None) -> None:

    async def streams(asked: ReceivedRequest) -> None:
        if count_gets(server) in (3, 8):  # the server hasn't noticed yet that the last one broke
            return await asked.reply(b"", status="409 Conflict")
        await asked.stream()
        if count_gets(server) > 20:
            await asked.event(NOTE)
            await block_forever()
        return await asked.end()

    async with asyncio.timeout(WAIT), misbehaving(session(streams)) as server, Client(server.url) as client:
        await wait_until(lambda: client.conversation.requests.incoming.subscribed._waiters)  # type: ignore[attr-defined]
        assert count_gets(server) == 5  # a client that doesn't watch costs no more
        async with client.watch(tools=True) as changes:
            assert await until_other_than_again(changes) == Change("tools")
        assert count_handshakes(server) == 1


async def test_watchers_reconnect_after_a_long_outage(short_backoff: None) -> None:
    away = False
    refusals: list[str] = []

    async def streams(asked: ReceivedRequest) -> None:
        await asked.stream()
        await wait_until(lambda: away)
        raise ConnectionError

    calm = session(streams)

    async def behave(asked: ReceivedRequest) -> None:
        if not away:
            return await calm(asked)
        refusals.append(asked.method)
        if asked.method == "initialize" and len(refusals) % 3 == 0:
            busy = {"jsonrpc": "2.0", "id": None, "error": {"code": -31503, "message": "Too many calls are running"}}
            return await asked.reply(json.dumps(busy).encode(), status="503 Service Unavailable")
        if asked.verb == "GET" and len(refusals) >= 12:
            return await asked.reply(b"", status="404 Not Found")  # the session is known to be gone
        if len(refusals) % 3 == 1:
            return await asked.reply(b"Bad gateway", status="502 Bad Gateway", type="text/plain")
        raise ConnectionError

    async with connected(behave) as (server, client):
        async with client.watch("a://1") as changes:
            away = True
            await wait_until(lambda: len(refusals) > 20)
            assert client.revision == "2025-11-25"
            with pytest.raises(ClientError):
                await client.call("x")
            await wait_until(lambda: len(refusals) > 60)
            away = False
            assert await anext(changes) == AGAIN
        assert count_handshakes(server) > 2


async def test_failed_calls_do_not_stop_watching(short_backoff: None) -> None:
    away = False

    async def calls(asked: ReceivedRequest) -> None:
        nonlocal away
        away = asked.method == "tools/call"
        await (asked.reply(b"", status="404 Not Found") if away else asked.result({}))

    calm = session(lambda asked: asked.reply(b"", status="405 Method Not Allowed"), calls)

    async def behave(asked: ReceivedRequest) -> None:
        if away:
            raise ConnectionError
        await calm(asked)

    async with connected(behave) as (server, client):
        async with client.watch("a://1") as changes:
            with pytest.raises(ConnectionLost):
                await client.call("x")
            away = False
            assert await anext(changes) == AGAIN
        assert [asked.method for asked in server.requests].count("resources/subscribe") == 2


async def test_watch_in_an_expired_session_starts_a_new_one(short_backoff: None) -> None:
    async def calls(asked: ReceivedRequest) -> None:
        gone = count_handshakes(server) == 1
        await (asked.reply(b"", status="404 Not Found") if gone else asked.result({}))

    calm = session(lambda asked: asked.reply(b"", status="405 Method Not Allowed"), calls)
    async with (
        asyncio.timeout(WAIT),
        misbehaving(calm) as server,
        Client(server.url) as client,
        client.watch("a://1"),
    ):
        assert count_handshakes(server) == 2


async def test_callbacks_count_as_watchers(short_backoff: None) -> None:
    heard: asyncio.Queue[Change] = asyncio.Queue()

    async def streams(asked: ReceivedRequest) -> None:
        if count_handshakes(server) == 1 and count_gets(server) > 1:
            return await asked.reply(b"", status="404 Not Found")
        await asked.stream()
        if count_handshakes(server) == 1:
            return await asked.end()
        return await block_forever()

    async with asyncio.timeout(WAIT), misbehaving(session(streams)) as server:
        client = Client(server.url, on_change=heard.put_nowait)
        async with client:
            assert await heard.get() == AGAIN
        assert count_handshakes(server) == 2


async def test_client_closed_during_a_reconnection_stays_closed(short_backoff: None) -> None:
    reconnecting, closed = asyncio.Event(), asyncio.Event()

    async def streams(asked: ReceivedRequest) -> None:
        if count_gets(server) > 1:
            return await asked.reply(b"", status="404 Not Found")
        await asked.stream()
        return await asked.end()

    usual = session(streams)

    async def behave(asked: ReceivedRequest) -> None:
        if count_handshakes(server) > 1:
            reconnecting.set()
            await closed.wait()
        await usual(asked)

    async with asyncio.timeout(WAIT), misbehaving(behave) as server, AsyncExitStack() as watches:
        async with Client(server.url) as client:
            changes = await watches.enter_async_context(client.watch("a://1"))
            await reconnecting.wait()
        closed.set()
        with pytest.raises(ClientError, match="The client was closed"):
            await anext(changes)
        assert client.conversation.requests.connection is None


def test_backoff_stays_finite_after_many_failures() -> None:
    reader = EventReader(1)
    reader.attempts = 5000
    assert 20 <= watching.retry_pause(5000) <= 30
    assert 20 <= reader.wait(http._FIRST_WAIT, http._LONGEST_WAIT) <= 30
