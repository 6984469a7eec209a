"""Lifespans are entered and exited in one task, and a failure while the server runs is reported."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from app_peer import ask
from millstream import Client, Server
from millstream._tasks import Tasks
from millstream.extensions import LocalError
from millstream.testing import connect
from patience import WAIT

TOTAL = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "total", "arguments": {}}}'


async def test_anyio_task_group_stays_open_while_the_server_runs() -> None:
    ended: list[str] = []

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            yield
            group.cancel_scope.cancel()
        ended.append(server.name)

    mcp = Server("shop", lifespan=lifespan)
    for _ in range(2):
        async with mcp.running():
            pass
    assert ended == ["shop", "shop"]


@pytest.mark.parametrize("mounted", [False, True])
async def test_failed_lifespan_task_is_logged_and_makes_the_server_unhealthy(
    mounted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    odd = asyncio.Event()

    async def consume() -> None:
        await odd.wait()
        raise KeyError("an odd event")

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(consume())
            yield
            task.cancel()

    mcp = Server("shop", lifespan=lifespan)
    if mounted:
        outer = Server("mall")
        outer.mount(mcp, "shop")
        mcp = outer
    async with mcp.running():
        assert (await ask(mcp, "GET", "/readyz")).body == b"ok\n"
        odd.set()
        while not (errors := [each for each in caplog.records if each.levelno == logging.ERROR]):  # noqa: ASYNC110
            await asyncio.sleep(0)
        health = await ask(mcp, "GET", "/health")
        assert health.status == 503
        assert json.loads(health.body)["reasons"] == ["the lifespan ended with an error"]
        assert (await ask(mcp, "GET", "/readyz")).body == b"degraded: the lifespan ended with an error\n"
    [record] = errors
    assert "ended while the server was running" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ExceptionGroup)
    assert str(record.exc_info[1].exceptions[0]) == "'an odd event'"


@pytest.fixture
def events() -> list[str]:
    """What happened to the lifespan of `shop`, in order."""
    return []


@pytest.fixture
def shop(events: list[str]) -> Server:
    """A server whose tool calls another tool of the same server."""

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        events.append("opened")
        yield
        events.append("closed")

    mcp = Server("shop", lifespan=lifespan)

    @mcp.tool
    async def price() -> int:
        return 3

    @mcp.tool
    async def total() -> int:
        async with Client(mcp) as client:
            return 2 * int((await client.call("price")).text)

    return mcp


async def test_server_stays_open_until_its_last_client_leaves(shop: Server, events: list[str]) -> None:
    async with connect(shop, principal="ada") as ada:
        async with connect(shop, principal="bob") as bob:
            assert (await bob.call("price")).text == "3"
        assert (await ada.call("total")).text == "6"
        assert events == ["opened"]
    assert events == ["opened", "closed"]


async def test_first_of_two_concurrent_clients_closes_nothing(shop: Server, events: list[str]) -> None:
    left = asyncio.Event()

    async def leave() -> None:
        async with Client(shop):
            pass
        left.set()

    async def stay() -> None:
        async with Client(shop) as client:
            await left.wait()
            assert (await client.call("price")).text == "3"
            assert events == ["opened"]

    await asyncio.gather(leave(), stay())
    assert events == ["opened", "closed"]


async def test_tool_that_uses_a_client_of_its_server_does_not_stop_it(shop: Server, events: list[str]) -> None:
    await shop.start(supervised=True)
    for _ in range(2):
        reply = await ask(shop, "POST", "/mcp", TOTAL, content_type="application/json")
        assert json.loads(reply.body)["result"]["content"][0]["text"] == "6"
    assert events == ["opened"]
    await shop.stop()
    assert events == ["opened", "closed"]


def slow_server(events: list[str], opening: asyncio.Event, ready: asyncio.Event) -> Server:
    """Return a server whose lifespan sets one event, waits for the other, and records when it has closed."""

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        opening.set()
        await ready.wait()
        yield
        events.append("closed")

    return Server("shop", lifespan=lifespan)


async def test_client_that_gives_up_while_the_server_starts_leaves_it_to_the_next(events: list[str]) -> None:
    opening, ready = asyncio.Event(), asyncio.Event()
    mcp = slow_server(events, opening, ready)
    impatient = asyncio.create_task(Client(mcp).__aenter__())
    await opening.wait()
    impatient.cancel()
    await asyncio.wait([impatient])
    ready.set()
    async with Client(mcp):
        assert events == []
    assert events == ["closed"]


async def test_host_lifespan_closes_a_server_that_a_publication_opened(events: list[str]) -> None:
    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        yield
        events.append("closed")

    mcp = Server("shop", serve="hub", lifespan=lifespan)
    await mcp.hub.publish("news", {"n": 1})
    async with mcp.lifespan():
        async with Client(mcp):
            pass
        assert events == []
    assert events == ["closed"]


async def test_server_that_is_started_while_a_client_is_open_outlives_the_client(
    shop: Server, events: list[str]
) -> None:
    async with Client(shop):
        await shop.start(supervised=True)
    assert events == ["opened"]
    await shop.stop()
    assert events == ["opened", "closed"]


async def test_canceled_start_does_not_hand_the_server_of_another_starter_to_its_clients(events: list[str]) -> None:
    opening, ready = asyncio.Event(), asyncio.Event()
    mcp = slow_server(events, opening, ready)
    canceled, other = (asyncio.create_task(mcp.start(supervised=True)) for _ in range(2))
    await opening.wait()
    canceled.cancel()
    await asyncio.wait([canceled])
    ready.set()
    await other
    async with Client(mcp):
        pass
    assert events == []
    await mcp.stop()
    assert events == ["closed"]


async def test_client_that_gives_up_while_the_server_starts_closes_it(events: list[str]) -> None:
    opening, ready = asyncio.Event(), asyncio.Event()
    impatient = asyncio.create_task(Client(slow_server(events, opening, ready)).__aenter__())
    await opening.wait()
    impatient.cancel()
    await asyncio.wait([impatient])
    ready.set()
    async with asyncio.timeout(WAIT):
        while events != ["closed"]:  # noqa: ASYNC110  the lifespan only records it
            await asyncio.sleep(0)


async def test_client_that_enters_while_the_server_closes_waits_and_opens_it_again(
    tmp_path: Path, events: list[str]
) -> None:
    """A SQLite store can't be opened twice."""
    leaving, ready = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        events.append("opened")
        yield
        leaving.set()
        await ready.wait()
        events.append("closed")

    mcp = Server("shop", lifespan=lifespan, store=f"sqlite:///{tmp_path}/shop.db")

    async def use() -> None:
        async with Client(mcp) as client:
            await client.ping()

    first = asyncio.create_task(use())
    await leaving.wait()
    others = [asyncio.create_task(use()) for _ in range(2)]
    await asyncio.sleep(0)
    ready.set()
    await asyncio.gather(first, *others)
    assert events == ["opened", "closed", "opened", "closed"]


async def test_client_that_enters_twice_opens_its_server_once_each_time(shop: Server, events: list[str]) -> None:
    client = Client(shop)
    for _ in range(2):
        async with client, client:
            assert (await client.call("price")).text == "3"
        events.append("left")
    assert events == ["opened", "closed", "left"] * 2


async def test_error_of_a_lifespan_reaches_each_client_that_waits_for_it(events: list[str]) -> None:
    opening, ready = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        opening.set()
        await ready.wait()
        if not events:
            events.append("failed")
            raise KeyError("no database")
        yield
        events.append("closed")

    mcp = Server("shop", lifespan=lifespan)
    clients = [asyncio.create_task(Client(mcp).__aenter__()) for _ in range(2)]
    await opening.wait()
    ready.set()
    for client in clients:
        with pytest.raises(KeyError, match="no database"):
            await client
    async with Client(mcp):
        assert events == ["failed"]
    assert events == ["failed", "closed"]


def test_each_event_loop_has_its_own_lifespan(shop: Server, events: list[str]) -> None:
    both = threading.Barrier(2, timeout=WAIT)
    prices: list[str] = []

    async def use() -> None:
        for _ in range(2):
            async with Client(shop) as client:
                await asyncio.to_thread(both.wait)
                prices.append((await client.call("total")).text)
                await asyncio.to_thread(both.wait)
            await asyncio.to_thread(both.wait)

    threads = [threading.Thread(target=lambda: asyncio.run(use())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert prices == ["6"] * 4
    assert events == ["opened", "opened", "closed", "closed"] * 2


@pytest.mark.parametrize("when", ["opening", "closing"])
async def test_client_in_the_lifespan_of_its_own_server_fails_at_once(when: str, events: list[str]) -> None:
    async def use(server: Server) -> None:
        with pytest.raises(LocalError, match=r"waits for this lifespan\. Call your functions directly"):
            async with Client(server):
                pass
        events.append("refused")

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        if when == "opening":
            await use(server)
        yield
        if when == "closing":
            await use(server)
            async with asyncio.TaskGroup() as group:
                group.create_task(use(server))

    mcp = Server("shop", lifespan=lifespan)
    async with asyncio.timeout(WAIT), Client(mcp) as client:
        await client.ping()
    assert events == (["refused"] if when == "opening" else ["refused", "refused"])


async def test_client_in_a_task_of_the_lifespan_does_not_keep_its_server_open(events: list[str]) -> None:
    """The task can enter before the server is open."""
    stop, used = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        async def watch() -> None:
            async with Client(server) as client:
                await client.ping()
                used.set()
                await stop.wait()

        async with asyncio.TaskGroup() as group:
            group.create_task(watch())
            await asyncio.sleep(0)
            yield
            stop.set()
        events.append("closed")

    mcp = Server("shop", lifespan=lifespan)
    async with asyncio.timeout(WAIT):
        async with Client(mcp):
            await used.wait()
            assert events == []
        assert events == ["closed"]


@pytest.mark.parametrize("given_up_by", ["a client", "stop"])
async def test_request_that_waits_for_a_start_gets_a_server_that_stays_open(
    given_up_by: str, events: list[str]
) -> None:
    opening, ready = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        opening.set()
        await ready.wait()
        events.append("opened")
        yield
        events.append("closed")

    mcp = Server("shop", serve="hub", lifespan=lifespan)
    if given_up_by == "a client":
        impatient = asyncio.create_task(Client(mcp).__aenter__())
        await opening.wait()
    request = asyncio.create_task(ask(mcp, "GET", "/livez"))
    await opening.wait()
    for _ in range(20):  # the request waits for the start
        await asyncio.sleep(0)
    if given_up_by == "a client":
        impatient.cancel()
        await asyncio.wait([impatient])
    else:
        await mcp.stop()
    ready.set()
    async with asyncio.timeout(WAIT):
        assert (await request).status == 200
        published = await ask(mcp, "POST", "/publish", b'{"data":1}', content_type="application/json")
    assert published.status == 200
    for _ in range(100):  # it doesn't close on its own
        await asyncio.sleep(0)
    assert events[-1] == "opened"
    await mcp.stop()
    assert events[-2:] == ["opened", "closed"]


async def test_single_task_starts_again_only_after_it_has_ended() -> None:
    started: list[str] = []
    may_end = asyncio.Event()

    async def work(name: str) -> None:
        started.append(name)
        await may_end.wait()

    tasks = Tasks()
    for name in ("one", "one", "another"):
        tasks.spawn_once(work, name)
    await asyncio.sleep(0)
    assert started == ["one", "another"]
    held = asyncio.all_tasks()
    may_end.set()
    await tasks.settle(WAIT)
    tasks.spawn_once(work, "one")
    await tasks.settle(WAIT)
    assert started == ["one", "another", "one"]
    assert sum(task.done() for task in held) == 2, "an ended task that something refers to doesn't count"
    await tasks.close()
