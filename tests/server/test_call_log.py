import asyncio
from pathlib import Path
from typing import Any

import pytest

from backend_stores import MemoryStore
from cases import for_each
from hub_parts import Clock
from millstream import Server
from millstream._protocol.principal import Share
from millstream._stores.base import MAX_OFFSET, Position
from millstream._transports.open_streams import OpenStreams
from millstream._transports.streamable import MESSAGE, TTL, append, event_id, log_name, parse_event_id
from patience import WAIT


@for_each("offset", [1, 10**18, MAX_OFFSET])
def test_offsets_round_trip_through_event_ids(offset: int) -> None:
    place = Position("epoch", offset)
    assert parse_event_id(event_id("abc", place)) == ("abc", place)


@for_each("offset", [str(MAX_OFFSET + 1), "9" * 40, "", "-1", "1x", "²"])
def test_malformed_event_ids_are_rejected(offset: str) -> None:
    assert parse_event_id(f"epoch.abc.{offset}") is None


class Silent:
    """The reply channel of a call that sends nothing."""

    def leave(self) -> None:
        """Ignore abandoned calls."""


async def test_silent_calls_can_be_resumed_after_their_log_expires() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    streams = OpenStreams(Share(9))
    running, ended = log_name("session", "a"), log_name("session", "b")
    streams.lines[running] = Silent()
    first = await append(store, running, MESSAGE, b"", None)
    await append(store, ended, MESSAGE, b"", None)
    for _ in range(10):
        clock.now += TTL / 2
        await streams.touch(store.log, TTL)
    assert await store.log.read(running, first) == []
    assert await store.log.read(ended, None) == []
    await append(store, running, MESSAGE, b"result", None)
    assert [entry.data for entry in await store.log.read(running, first)] == [MESSAGE + b"result"]


async def test_heartbeats_extend_the_logs_of_calls_on_every_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extended = asyncio.Event()

    async def touch(streams: OpenStreams, log: Any, ttl: float) -> None:
        extended.set()

    monkeypatch.setattr(OpenStreams, "touch", touch)
    for url in ("memory://", f"sqlite:///{tmp_path}/shop.db"):
        extended.clear()
        async with Server("shop", store=url).running() as runtime, asyncio.timeout(WAIT):
            for beat in runtime.sweep.beats:
                beat()
            await extended.wait()
