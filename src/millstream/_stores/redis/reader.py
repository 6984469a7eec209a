"""The blocking read: one connection that waits on every stream that this worker follows.

It always continues after the last entry it read, so a broken connection loses nothing. Entries lost in Redis leave a
hole in the offsets, which the listener detects.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from millstream._protocol.errors import LocalError
from millstream._stores.base import StoreUnavailable
from millstream._stores.redis.client import Argument, RedisClient

_PAGE = 64
_BLOCK = 2000
"""Milliseconds that one read blocks, less than `SILENCE`, after which a connection counts as broken."""
_PAUSE = 0.2
_PAUSES = 10
_TRIES = 40
_TURN = 1.0
_CANCEL = 0.05

Fields = Mapping[bytes, bytes]
Take = Callable[[str, Fields], None]
"""A callback that takes the id of an entry and its fields."""

_logger = logging.getLogger("millstream.stores")


class StreamReader:
    """A reader of several streams. Run `run` as a task."""

    def __init__(self, client: RedisClient, key: str) -> None:
        # configuration
        self._client = client
        self._key = key
        """Any key of the hub's slot."""
        self.poke: Callable[[], Any] | None = None
        """Returns a command that appends to a stream, which ends the pending read."""
        # process
        self._callbacks: dict[str, Take] = {}
        self._places: dict[str, str] = {}
        """The last id of each stream."""
        self._pending_streams: frozenset[str] = frozenset()
        """The streams of the pending read."""
        self._changed = asyncio.Event()
        self._moves = 0
        """Number of position changes. A read that began earlier is void."""
        self._read_task: asyncio.Task[Any] | None = None

    def follow(self, stream: str, last: str, take: Take) -> None:
        """Follow a stream after an id. Call `cover` to apply this immediately."""
        self._places[stream] = last
        self._callbacks[stream] = take
        self._moves += 1
        self._pending_streams -= {stream}

    def leave(self, stream: str) -> None:
        """Stop following a stream."""
        self._callbacks.pop(stream, None)
        self._places.pop(stream, None)

    def rewind(self, stream: str, end: int) -> None:
        """Continue after offset `end` if the last entry read was later: a failover may have lost entries."""
        if stream in self._callbacks and int(self._places[stream].partition("-")[0]) > end:
            self._places[stream] = f"{end}-0"
            self._moves += 1
            self._pending_streams = frozenset()

    def forget_all(self) -> None:
        """Stop following all streams."""
        self._callbacks.clear()
        self._places.clear()
        self._pending_streams = frozenset()

    async def cover(self, stream: str) -> None:
        """Wait until the current read includes a stream, or the next one will."""
        for _ in range(_TRIES):
            if stream in self._pending_streams or stream not in self._callbacks or self._read_task is None:
                return
            self._changed.clear()
            if self.poke is not None:
                with suppress(StoreUnavailable):
                    await self.poke()
            with suppress(TimeoutError):
                async with asyncio.timeout(_TURN):
                    await self._changed.wait()
                    continue
            # The read may wait on a former primary, or may have ended by itself.
            self._cancel_reading()

    def _cancel_reading(self) -> None:
        if self._read_task is not None:
            self._read_task.cancel()

    async def run(self) -> None:
        """Read until cancelled."""
        failures = 0
        try:
            while True:
                self._read_task = asyncio.create_task(self._read())
                await asyncio.wait([self._read_task])
                failure = None if self._read_task.cancelled() else self._read_task.exception()
                if failure is None:
                    if failures:
                        _logger.warning("The store can be read again.")
                    failures = 0
                    continue
                if not isinstance(failure, OSError | LocalError):
                    raise failure
                self._pending_streams = frozenset()
                failures += 1
                if failures == 1:
                    _logger.warning("The store can't be read; retrying: %s", failure)
                await asyncio.sleep(_PAUSE * min(failures, _PAUSES))
        finally:
            reading, self._read_task = self._read_task, None
            while reading is not None and not reading.done():
                reading.cancel()  # redis-py ignores it while it connects
                await asyncio.wait([reading], timeout=_CANCEL)

    async def _read(self) -> None:
        streams = list(self._callbacks)
        self._pending_streams = frozenset(streams)
        self._changed.set()
        ids = [self._places[stream] for stream in streams]
        moves = self._moves
        command: list[Argument] = ["XREAD", "COUNT", _PAGE, "BLOCK", _BLOCK, "STREAMS", *streams, *ids]
        reply = await self._client.block(self._key, *command)
        if moves != self._moves:
            return  # discard the reply: it's read again from the new positions
        for name, entries in reply or ():
            self._take(name.decode(), entries)

    def _take(self, stream: str, entries: list[tuple[bytes, Fields]]) -> None:
        for id, fields in entries:
            take = self._callbacks.get(stream)
            if take is None:
                return
            self._places[stream] = at = id.decode()
            try:
                take(at, fields)
            except Exception:  # a failing callback must not end the shared connection
                _logger.exception("A callback for entries of the store failed.")
