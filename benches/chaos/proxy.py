"""A simulated network between clients and the server: it breaks connections, delays them, and half-closes them."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Self

QUIET = 3.0
"""Average seconds between two faults of one connection."""
HOLD = (0.05, 2.0)
"""Seconds for which a connection carries nothing."""


class _Way:
    """One direction of a connection."""

    def __init__(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        self._source = source
        self._sink = sink
        self._ended = False
        self.may_pass = asyncio.Event()
        self.may_pass.set()

    async def carry(self) -> None:
        """Forward data until the source ends."""
        while data := await self._source.read(65536):
            await self.may_pass.wait()
            if not self._ended:  # data after the end is lost
                self._sink.write(data)
                await self._sink.drain()
        self.end()

    def end(self) -> None:
        """Signal the end of the data."""
        if not self._ended:
            self._ended = True
            with suppress(OSError):
                self._sink.write_eof()


class Proxy:
    """A proxy in front of a port on this machine."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.done = Counter[str]()
        """Number of faults by kind."""
        self._to = port
        self._calm = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def calm(self) -> None:
        """Stop causing faults."""
        self._calm.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        sides = [writer]
        try:
            theirs, ours = await asyncio.open_connection("127.0.0.1", self._to)
            sides.append(ours)
            await self._between(_Way(reader, ours), _Way(theirs, writer), self._cut(sides))
        except (OSError, asyncio.CancelledError):
            pass  # the server doesn't cancel accepts, so this is the end
        finally:
            for side in sides:
                side.transport.abort()

    async def _between(self, up: _Way, down: _Way, cut: Callable[[], None]) -> None:
        trouble = asyncio.create_task(self._trouble(up, down, cut))
        carrying = [asyncio.create_task(each.carry()) for each in (up, down)]
        try:
            await asyncio.gather(*carrying)
        finally:
            for task in (trouble, *carrying):
                task.cancel()
            await asyncio.gather(trouble, *carrying, return_exceptions=True)

    @staticmethod
    def _cut(sides: list[asyncio.StreamWriter]) -> Callable[[], None]:
        def cut() -> None:
            for side in sides:
                side.transport.abort()

        return cut

    async def _trouble(self, up: _Way, down: _Way, cut: Callable[[], None]) -> None:
        while not self._calm.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._calm.wait(), random.expovariate(1 / QUIET))
                return
            what = random.choice(("cut", "held", "held", "client half closed", "server half closed"))
            self.done[what] += 1
            if what == "cut":
                cut()
            elif what == "held":
                await self._hold(random.choice((up, down)))
            else:
                (up if what == "client half closed" else down).end()

    async def _hold(self, way: _Way) -> None:
        way.may_pass.clear()
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._calm.wait(), random.uniform(*HOLD))
        finally:
            way.may_pass.set()
