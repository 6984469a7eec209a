import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from cases import for_each
from fleet import until
from millstream import Server
from millstream._http.message import HttpRequest, Response
from millstream._protocol.errors import LocalError
from millstream._protocol.principal import Share
from millstream._protocol.sse import Decoder, SseEvent
from millstream._transports.open_streams import OpenStreams
from millstream._web import live
from millstream._web.live import MAX_BUFFERED, DashboardFeed, LogTail
from patience import WAIT

INFO = {"name": "mill", "version": "1", "started": 1.0, "facts": {"Python": "3"}}


class Screen:
    """A sink that keeps what is written."""

    def __init__(self) -> None:
        self.closed = False
        self.buffered = 0
        self.chunks: list[bytes] = []
        self._callbacks: list[Callable[[], None]] = []
        self._over = asyncio.Event()

    def write(self, data: bytes) -> None:
        """Keep a chunk."""
        if not self.closed:
            self.chunks.append(data)

    async def drain(self) -> None:
        """There is always room."""

    def close(self) -> None:
        """The end, from either side."""
        if not self.closed:
            self.closed = True
            self._over.set()
            for callback in self._callbacks:
                callback()

    def on_close(self, callback: Callable[[], None]) -> None:
        """Keep a callback, or call it when it is too late."""
        self._callbacks.append(callback)
        if self.closed:
            callback()

    def forget(self, callback: Callable[[], None]) -> None:
        """Remove a callback."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    async def wait_closed(self) -> None:
        """Until the end."""
        await self._over.wait()

    @property
    def events(self) -> list[SseEvent]:
        """What a page would get."""
        return Decoder().feed(b"".join(self.chunks))

    def lines(self) -> list[str]:
        """The messages of all log lines."""
        return [line["message"] for event in self.events if event.event == "log" for line in json.loads(event.data)]


class Asked(HttpRequest, eq=False, kw_only=True):
    """A request whose stream is a screen."""

    screen: Screen

    def open(self, status: int, head: bytes) -> Screen:
        """Look at it."""
        return self.screen


class World:
    """A feed with everything around it."""

    def __init__(self, *, size: int = 5, max_streams: int = 10) -> None:
        self.taken = count(1)
        self.log = LogTail(size)
        self.logger = logging.Logger("mill")  # noqa: LOG001  of its own, so that no other handler hears it
        self.logger.addHandler(self.log)
        self.streams = OpenStreams(Share(max_streams, each=max_streams))
        self.feed = DashboardFeed(lambda: {"number": next(self.taken)}, self.log, self.streams, info=INFO)

    @asynccontextmanager
    async def watching(self, last_event_id: str = "", *, query: bool = False) -> AsyncIterator[Screen]:
        """Somebody who watches."""
        screen = Screen()
        given: dict[str, Any] = {"query": f"last_event_id={last_event_id}".encode()} if query else {}
        headers = {b"last-event-id": last_event_id.encode()} if last_event_id and not query else {}
        request = Asked("GET", "/dashboard/events", [], headers, **given, screen=screen)
        handler = asyncio.ensure_future(self.feed.events(request))
        await asyncio.sleep(0)
        try:
            yield screen
        finally:
            screen.close()
            await asyncio.wait_for(handler, WAIT)


async def test_watchers_receive_server_log_and_snapshots() -> None:
    world = World()
    world.logger.warning("Before.")
    async with world.watching() as screen:
        world.feed.broadcast()
        world.logger.warning("After.")
        world.feed.broadcast()
        assert [event.event for event in screen.events] == ["server", "log", "snapshot", "log", "snapshot"]
        server = json.loads(screen.events[0].data)
        assert server["name"] == "mill"
        assert server["instance"]
        assert screen.lines() == ["Before.", "After."]
        assert json.loads(screen.events[-1].data) == {"number": 2}


async def test_snapshots_are_taken_once_and_only_for_watchers() -> None:
    world = World()
    runner = asyncio.ensure_future(world.feed.run())
    await asyncio.sleep(0)
    assert next(world.taken) == 1
    async with world.watching() as one, world.watching() as other:
        await asyncio.sleep(0)
        world.feed.broadcast()
        assert one.chunks[-1] is other.chunks[-1]
        assert len(world.feed) == 2
    assert len(world.feed) == 0
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)


async def test_metrics_continue_after_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live, "INTERVAL", 0)
    world = World()
    trouble = iter([ValueError("no figures now")])

    async def refresh() -> None:
        for each in trouble:
            raise each

    monkeypatch.setattr(world.feed, "_refresh", refresh, raising=True)
    runner = asyncio.ensure_future(world.feed.run())
    async with world.watching() as screen, asyncio.timeout(WAIT):
        while caplog.text.count("no figures now") == 0 or screen.events[-1].event != "snapshot":  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)
    assert "no figures now" in caplog.text


@for_each("query", [False, True], ids=["header", "query"])
async def test_reconnecting_watchers_receive_no_line_twice(query: bool) -> None:
    """WHATWG HTML 9.2: `Last-Event-ID`; here also in the query, for a page that opens a new stream."""
    world = World()
    world.logger.warning("one")
    async with world.watching() as screen:
        world.logger.warning("two")
        world.feed.broadcast()
        told = screen.events[-1].id
    world.logger.warning("three")
    async with world.watching(told, query=query) as screen:
        world.logger.warning("four")
        world.feed.broadcast()
        assert screen.lines() == ["three", "four"]


async def test_watchers_receive_the_same_lines() -> None:
    world = World()
    async with world.watching() as early:
        world.logger.warning("one")
        async with world.watching() as late:
            world.logger.warning("two")
            world.feed.broadcast()
            assert early.lines() == late.lines() == ["one", "two"]


async def test_unknown_event_ids_return_every_line() -> None:
    world = World()
    world.logger.warning("one")
    async with world.watching() as screen:
        instance = json.loads(screen.events[0].data)["instance"]
    for last_event_id in ("0badcafe-7", "-", "x", "9" * 5000, f"{instance}-x", f"{instance}-{'9' * 5000}"):
        async with world.watching(last_event_id) as screen:
            assert screen.lines() == ["one"]


async def test_stalled_watchers_are_disconnected() -> None:
    world = World()
    async with world.watching() as slow, world.watching() as quick:
        slow.buffered = MAX_BUFFERED + 1
        world.feed.broadcast()
        assert slow.closed
        assert quick.events[-1].event == "snapshot"
        assert len(world.feed) == 1


async def test_clients_that_disconnect_early_are_not_watchers() -> None:
    world, screen = World(), Screen()
    screen.close()
    request = Asked("GET", "/dashboard/events", [], {}, screen=screen)
    assert await asyncio.wait_for(world.feed.events(request), WAIT) is None
    assert len(world.feed) == 0


async def test_excess_streams_get_a_retry_time() -> None:
    world = World(max_streams=1)
    async with world.watching():
        request = Asked("GET", "/dashboard/events", [], {}, screen=Screen())
        response = await world.feed.events(request)
    assert isinstance(response, Response)
    assert response.status == 503
    assert b"retry-after" in response.head


async def test_log_tail_keeps_the_newest_lines() -> None:
    world = World(size=3)
    threads = [threading.Thread(target=world.logger.warning, args=(f"line {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    lines, last = world.log.after(0)
    assert (len(lines), last) == (3, 8)
    assert world.log.after(7) == (lines[-1:], 8)
    assert world.log.after(8) == ([], 8)
    assert world.log.after(99) == ([], 8)


async def test_secrets_do_not_reach_the_dashboard() -> None:
    world = World()
    world.logger.warning("token=abcdef\nforged", extra={"password": "hunter2"})
    async with world.watching() as screen:
        text = b"".join(screen.chunks).decode()
    assert "abcdef" not in text
    assert "hunter2" not in text
    assert "\nforged" not in text


async def test_unformattable_log_records_are_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    world = World()
    world.logger.warning("%d", "no number")
    assert world.log.after(0) == ([], 0)


class Refusing:
    """Values that cannot be read."""

    async def get(self, key: str) -> bytes | None:
        """As a store's."""
        raise LocalError("no route to the host")


async def test_dashboard_reports_a_store_outage() -> None:
    server, screen = Server("shop", serve="web"), Screen()
    async with server.running() as runtime:
        store: Any = SimpleNamespace(kv=Refusing())
        runtime.store_health.store = store
        handler = runtime.serve_http().find("GET", "/dashboard/events")
        assert handler is not None
        headers = {b"host": b"localhost"}
        request = Asked("GET", "/dashboard/events", list(headers.items()), headers, peer="127.0.0.1", screen=screen)
        watching = asyncio.ensure_future(handler(request))

        def shown() -> list[bool]:
            return [json.loads(each.data)["store"]["up"] for each in screen.events if each.event == "snapshot"]

        await until(lambda: bool(shown()))
        assert shown()[0] is False
        screen.close()
        await watching
