"""The worker's side of a store in the parent process.

A worker that loses its connection reconnects. Its lease ended with the connection. If nothing listens at the address
anymore, the parent has exited, and calls fail immediately.
"""

import asyncio
import logging
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._stores.base import Entry, Log, Map, StoreUnavailable
from millstream._stores.local.calls import (
    HELLO,
    VERSION,
    EntryPush,
    FrameConnection,
    RawStoreReply,
    StoreCall,
    StoreFailure,
    calls,
    read_answers,
)
from millstream._stores.tail import Listeners, Watchers

PATIENCE = 10.0
"""Seconds without any reply after which pending calls fail. Also the time limit for reconnecting."""
LEASE = 60.0
"""Lease time in seconds. The parent ends a lease with the connection, so this only matters for stalled workers."""
_PAUSES = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
_GONE = (
    "The parent process, which holds the store for all workers, has ended or doesn't respond. Workers can't "
    "continue without it. Start the program again."
)

_logger = logging.getLogger("millstream.stores")


class LocalBackend(Listeners[Entry], FrameConnection):
    """A `Backend` that runs in the parent process, for one event loop. It has at most one connection at a time."""

    shared = True
    lease = LEASE
    max_frame = 2**32

    def __init__(self, address: str, url: str) -> None:
        """Create a backend. `open` connects it.

        Args:
            address: The path of the parent's socket.
            url: URL of the store that the parent opens. A path in it is absolute.
        """
        super().__init__()

        def remote(part: str) -> Any:
            return SimpleNamespace(**{name: partial(self.call, call) for name, call in calls(part).items()})

        self._address = address
        self._url = url
        session, backend, kv, log = map(remote, ("session", "backend", "kv", "log"))
        self.degraded_reason = backend.degraded_reason
        self.charge = backend.charge
        self.release = backend.release
        self.bind = session.bind
        # The parent answers in order, and reconnecting listens to everything again.
        log.listen, log.wait_until_listening = self.listen, session.mark
        self.kv: Map = kv
        self.log: Log = log
        self.epoch = ""
        self._changed = Watchers()
        self.watch = self._changed.watch
        self._open = False
        self._reconnecting: asyncio.Task[None] | None = None
        self._next = 0
        # Connection
        self._waiting: dict[int, tuple[StoreCall, asyncio.Future[Any]]] = {}
        self._received = False
        """Whether anything was received since the last check."""
        self._check: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] | None = None

    def time(self) -> float:
        return time.time()  # the store's process is on the same machine

    async def open(self) -> None:
        """Connect.

        Raises:
            LocalError: The parent has exited or can't open the store.
        """
        self._open = True
        try:
            await self._connect()
        except BaseException as exc:
            self._open = False
            if isinstance(exc, OSError):
                raise StoreUnavailable(_GONE) from exc
            raise

    async def close(self) -> None:
        """Send buffered calls and disconnect. Idempotent."""
        self.remove_listeners()
        self._changed.clear()
        self._open = False
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            self._reconnecting = None
        if self._transport is not None and self._ended is not None:
            self._flush()
            self._transport.close()
            await self._ended

    async def call(self, call: StoreCall, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method in the parent.

        Raises:
            StoreUnavailable: The parent has exited or doesn't respond.
            LocalError, Gap: The method raised it.
        """
        if self._transport is None:
            if not self._open:
                raise StoreUnavailable("The store is closed.")
            if self._reconnecting is not None:
                await asyncio.wait([self._reconnecting], timeout=PATIENCE)
        return await self._send(call, *args, **kwargs)

    def _send(self, call: StoreCall, /, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """Send a call without waiting. Return a future for its result.

        Raises:
            StoreUnavailable: There is no connection.
        """
        if self._transport is None:
            raise StoreUnavailable(_GONE)
        number = self._next = self._next + 1
        self._write(call.request(number, *args, **kwargs))
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[number] = (call, future)
        if self._check is None:
            self._received = False
            self._check = self._loop.call_later(PATIENCE, self._look)
        return future

    @override
    def _follow(self, channel: str, *, on: bool = True) -> None:
        """Start or stop receiving a channel, if there is a connection."""
        if self._transport is not None:
            self._send(_LISTEN, channel, on)

    @override
    def _leave(self, channel: str) -> None:
        self._follow(channel, on=False)

    # Connecting

    async def _connect(self) -> None:
        await asyncio.get_running_loop().create_unix_connection(lambda: self, self._address)
        try:
            async with asyncio.timeout(PATIENCE):
                epoch: str = await self._send(HELLO, VERSION, self._url)
        except BaseException as exc:
            if self._transport is not None:
                self._transport.abort()
            if isinstance(exc, TimeoutError):
                raise StoreUnavailable(_GONE) from None
            raise
        before, self.epoch = self.epoch, epoch
        for channel in self._listeners:
            self._follow(channel)
        if before:
            self.interrupt()
        if before and before != self.epoch:
            self._changed.notify_all()

    async def _reconnect(self) -> None:
        """Retry a number of times, until a connection succeeds or nothing listens at the address anymore."""
        for pause in (*_PAUSES, *[_PAUSES[-1]] * 60):
            await asyncio.sleep(pause)
            try:
                return await self._connect()
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            except (StoreUnavailable, OSError):
                continue
            except LocalError as exc:  # the parent runs another version, and each call fails from now on
                _logger.error("The workers' parent process can't be used: %s", exc)
                return None
            except Exception:
                _logger.exception("The connection to the workers' parent process failed; retrying")
        return None

    # The connection

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._ended = self._loop.create_future()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        self._fail()
        if self._open and (self._reconnecting is None or self._reconnecting.done()):
            self._reconnecting = self._loop.create_task(self._reconnect())

    @override
    def data_received(self, data: bytes) -> None:
        self._received = True
        for content in self._frames.feed(data):
            for answer in read_answers(content):
                if isinstance(answer, RawStoreReply | StoreFailure):
                    self._finish(answer)
                elif isinstance(answer, EntryPush):
                    self._listeners.notify(answer.channel, answer.entry)
                else:
                    self.interrupt()

    def _finish(self, answer: RawStoreReply | StoreFailure) -> None:
        call, future = self._waiting.pop(answer.id, (None, None))
        if call is None or future is None or future.done():
            return
        if isinstance(answer, StoreFailure):
            future.set_exception(answer.error())
        else:
            future.set_result(call.read_reply(answer.value))

    def _look(self) -> None:
        """Fail pending calls if the parent has stalled."""
        self._check = None
        if not self._waiting:
            return
        if self._received:
            self._received = False
            self._check = self._loop.call_later(PATIENCE, self._look)
        else:
            self._fail()

    def _fail(self) -> None:
        waiting, self._waiting = self._waiting, {}
        if self._check is not None:
            self._check.cancel()
            self._check = None
        for _, future in waiting.values():
            if not future.done():
                future.set_exception(StoreUnavailable(_GONE))
                future.exception()  # the caller may have been canceled


_LISTEN = calls("session")["listen"]
