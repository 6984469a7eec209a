"""Background loops outlive errors that nobody expected: a raising store, entry, or listener."""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend_stores import MemoryStore, SqliteStore
from cases import for_each
from hub_parts import listen, open_hub
from millstream import Client, Server, Settings
from millstream._app.server_process import listen_sockets
from millstream._app.server_process.listen_sockets import Certificate
from millstream._server.peers import Peers
from millstream._stores import health
from millstream._stores.base import Entry, Gap
from millstream._stores.local.store import LocalBackend
from millstream._stores.sqlite.file import locate
from millstream._stores.store import Store
from millstream._stores.tail import Tail
from millstream.client import ClientError
from patience import WAIT
from store_parts import DictBacking, LocalBacking, append, data_of

STREAM = "hub:journal"


def failing_once(work: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """Return an async function that raises an error the first time."""
    failures = [error]

    async def run(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return await work(*args, **options)

    return run


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT):
        while not true():  # noqa: ASYNC110  nothing tells
            await asyncio.sleep(0.005)


@for_each("read", ["pushed", "read"])
async def test_entry_that_cannot_be_processed_is_a_loss_and_later_ones_arrive(read: str, tmp_path: Path) -> None:
    backing = DictBacking()
    stores: list[Store] = [MemoryStore(), SqliteStore(locate(f"sqlite:///{tmp_path}/{read}.db")), await backing.worker()]
    for store in stores[:2]:
        await store.open()
    for store in stores:
        taken: list[Entry] = []
        gaps: list[Gap] = []

        def take(entries: Any, taken: list[Entry] = taken) -> None:
            if any(entry.data == b"poison" for entry in entries):
                raise ZeroDivisionError("poison")
            taken.extend(entries)

        tail = Tail(store.log, STREAM, None, take, gaps.append)
        if read == "pushed":
            await append(store, STREAM, b"first")
            await tail.catch_up()
            tail.start()
        async with asyncio.timeout(WAIT):  # without this, the writers of SQLite waited forever
            await append(store, STREAM, b"poison")
        if read == "read":
            tail.start()
            await until(lambda gaps=gaps: gaps)
        await append(store, STREAM, b"last")
        await until(lambda taken=taken: b"last" in data_of(taken))
        assert len(gaps) == 1
        await tail.close()
    for store in stores[:2]:
        await store.close()
    await backing.close()


async def test_listener_that_fails_does_not_keep_writers_waiting(tmp_path: Path) -> None:
    store = SqliteStore(locate(f"sqlite:///{tmp_path}/store.db"))
    await store.open()

    def hear(entry: Entry) -> None:
        raise ZeroDivisionError

    store.log.listen(STREAM, hear)
    async with asyncio.timeout(WAIT):
        await asyncio.gather(*(append(store, STREAM, b"x") for _ in range(20)))
        await append(store, STREAM, b"y")
    await store.close()


async def test_checks_of_dead_workers_outlive_an_unexpected_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(health, "PAUSE", 0.0)
    backing = DictBacking()
    store = await backing.worker()
    peers, looks = Peers(store, [b"secret"]), list[None]()

    async def look() -> None:
        looks.append(None)
        if len(looks) == 1:
            raise ZeroDivisionError("a check")

    peers.on_workers(look)
    peers.open()
    await backing.worker()
    await until(lambda: len(looks) >= 2)
    await backing.worker()
    seen = len(looks)
    await until(lambda: len(looks) > seen)
    assert "a check" in caplog.text
    await peers.close()
    await backing.close()


async def test_lease_is_renewed_after_an_unexpected_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PAUSE", 0.0)
    backing = DictBacking()
    store, other = await backing.worker(), await backing.worker()
    workers: Any = store.workers
    renewed = asyncio.Event()
    renew = workers._backend.bind

    async def bind(name: str) -> None:
        await renew(name)
        renewed.set()

    monkeypatch.setattr(workers._backend, "bind", failing_once(bind, KeyError("leases")))
    workers.hurry()
    async with asyncio.timeout(WAIT):
        await renewed.wait()
    assert await other.workers.alive(workers.me)
    await backing.close()


async def test_presence_outlives_an_unexpected_error_of_the_store(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_hub() as hub:
        watcher = await listen(hub, "$presence.chat")
        ann, bob = await listen(hub, "chat", client_id="ann"), await listen(hub, "chat", client_id="bob")
        await watcher.until(2)
        tail: Any = hub._delivery.event_tail
        monkeypatch.setattr(tail, "settle", failing_once(tail.settle, KeyError("ann")))
        ann.close()
        await until(lambda: "The hub can't publish a departure" in caplog.text)
        bob.close()
        await watcher.until(3)
        left = [json.loads(data or "")["client_id"] for event, data, _ in watcher.events() if event == "leave"]
        assert left == ["bob"]


async def test_workers_reconnect_to_their_parent_after_an_unexpected_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backing = LocalBacking()
    store = await backing.worker()
    backend: Any = store.backend
    assert isinstance(backend, LocalBackend)
    monkeypatch.setattr(backend, "_connect", failing_once(backend._connect, TypeError("odd reply")))
    backend._transport.abort()
    await until(lambda: "odd reply" in caplog.text and backend._transport is not None)
    async with asyncio.timeout(WAIT):
        await append(store, STREAM, b"x")
    await backing.close()


async def test_certificates_are_checked_after_an_unexpected_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen_sockets, "EVERY", 0.0)
    certificate, checks = Certificate.__new__(Certificate), list[None]()

    def renew() -> bool:
        checks.append(None)
        raise RuntimeError

    monkeypatch.setattr(certificate, "renew", renew)
    watching = asyncio.create_task(certificate.watch())
    await until(lambda: len(checks) > 2)
    watching.cancel()


@for_each("revision", ["2025-11-25", "2026-07-28"])
async def test_notification_that_cannot_be_processed_does_not_end_later_ones(
    revision: str, caplog: pytest.LogCaptureFixture
) -> None:
    mcp = Server("s")

    @mcp.resource("docs://a")
    def a() -> str:
        return "a"

    failures: list[None] = []

    def fail(change: Any, subscription: Any) -> None:
        failures.append(None)
        raise ZeroDivisionError("odd change")

    async with Client(mcp, revision=revision, timeout=WAIT) as client, asyncio.timeout(WAIT):
        async with client.watch("docs://a") as changes:
            watchers: Any = changes._requests.incoming.watchers
            watchers.add(fail)
            await mcp.resource_updated("docs://a")
            await until(lambda: failures)
            watchers.discard(fail)
            await mcp.resource_updated("docs://a")
            assert (await anext(changes)).uri == "docs://a"
    assert "odd change" in caplog.text


async def test_subscription_that_fails_tells_its_reader_why(monkeypatch: pytest.MonkeyPatch) -> None:
    mcp = Server("s")
    async with Client(mcp, timeout=WAIT) as client, asyncio.timeout(WAIT):
        async with client.watch() as changes:

            async def listen() -> None:
                raise ZeroDivisionError("odd acknowledgment")

            monkeypatch.setattr(type(changes), "_listen", lambda self: listen())
            changes._interrupted.set()
            with pytest.raises(ClientError, match="odd acknowledgment"):
                await anext(changes)
