"""A worker's connection to the parent that holds the store: requests, replies and what is pushed in between.

It connects again after the parent cut it off, which happens to a worker that stood still for too long. It's another
worker then. Where nobody listens any more, the parent is gone, and what is asked fails at once.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from millstream._protocol.errors import LocalError
from millstream._stores.base import Gap, Sealed, ShareFull, StoreFull, StoreUnavailable
from millstream._stores.local import wire
from millstream._stores.parent import Address

PATIENCE: Final = 10.0
"""Seconds in which the parent must say something while it's asked; seconds, too, to be connected again."""
_PAUSES: Final = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
_FAILURES: Final[dict[str, type[LocalError]]] = {
    "StoreFull": StoreFull,
    "ShareFull": ShareFull,
    "Sealed": Sealed,
    "StoreUnavailable": StoreUnavailable,
}
_GONE: Final = (
    "The parent process, which holds the store of all workers, is gone or doesn't answer. Workers can't go on without "
    "it: start the program again."
)


class Events:
    """What a link tells besides replies."""

    __slots__ = ("changed", "heard", "message", "missed", "welcome")

    def __init__(
        self,
        welcome: Callable[[wire.Greeting], None],
        heard: Callable[[wire.Heard], None],
        message: Callable[[wire.Message], None],
        missed: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        self.welcome = welcome
        """Connected, for the first time or again; the requests that it makes are the first."""
        self.heard = heard
        self.message = message
        self.missed = missed
        """Some of what was pushed may be lost."""
        self.changed = changed
        """A worker came or went."""


class Link(asyncio.Protocol):
    """One connection at a time."""

    def __init__(self, address: Address, url: str, events: Events) -> None:
        # Configuration
        self._address = address
        self._url = url
        self._events = events
        # Process
        self._open = False
        self._reconnecting: asyncio.Task[None] | None = None
        self._next = 0
        # Connection
        self._transport: asyncio.Transport | None = None
        self._frames = wire.Frames(2**32)
        self._out = wire.Frame()
        self._flushes = False
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._heard = False
        """Something came since the watch looked."""
        self._watch: asyncio.TimerHandle | None = None
        self._lost: asyncio.Future[None] | None = None
        """Done when the connection has ended."""

    # opening and closing

    async def open(self) -> None:
        """Connect.

        Raises:
            LocalError: the parent is gone, or can't open the store.
        """
        self._open = True
        try:
            await self._connect()
        except OSError as exc:
            self._open = False
            raise StoreUnavailable(_GONE) from exc
        except BaseException:
            self._open = False
            raise

    async def close(self) -> None:
        """Say what is still to be said, and disconnect. Idempotent."""
        self._open = False
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            self._reconnecting = None
        if self._transport is not None and self._lost is not None:
            self._flush()
            self._transport.close()
            await self._lost

    def abort(self) -> None:
        """Let go of the connection as a process does that is killed."""
        self._open = False
        if self._transport is not None:
            self._transport.abort()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        if self._address.path:
            await loop.create_unix_connection(lambda: self, self._address.path)
        else:
            await loop.create_connection(lambda: self, "127.0.0.1", self._address.port)
        try:
            async with asyncio.timeout(PATIENCE):
                greeting = await self._send(wire.Hello, wire.VERSION, self._address.secret, self._url)
        except TimeoutError:
            self._disconnect()
            raise StoreUnavailable(_GONE) from None
        except BaseException:
            self._disconnect()
            raise
        self._events.welcome(greeting)

    def _disconnect(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _reconnect(self) -> None:
        """Try until it works, or nobody listens any more."""
        for pause in (*_PAUSES, *[_PAUSES[-1]] * 60):
            await asyncio.sleep(pause)
            try:
                return await self._connect()
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            except (LocalError, OSError):
                continue
        return None

    # the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none, but does what one does
        self._frames = wire.Frames(2**32)
        self._out = wire.Frame()
        self._lost = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)
        self._fail()
        if self._open and (self._reconnecting is None or self._reconnecting.done()):
            self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect())

    def data_received(self, data: bytes) -> None:
        self._heard = True
        for content in self._frames.feed(data):
            for said in wire.answers(content):
                if isinstance(said, wire.Reply):
                    self._reply(said)
                else:
                    self._pushed(said)

    def _reply(self, said: wire.Reply) -> None:
        future = self._asked.pop(said.id, None)
        if future is None or future.done():
            return
        if isinstance(said, wire.Failed):
            future.set_exception(_FAILURES.get(said.kind, LocalError)(said.text))
        elif isinstance(said, wire.Missed):
            future.set_exception(Gap(said.epoch, said.oldest, said.newest))
        else:
            future.set_result(said.value)  # type: ignore[attr-defined]

    def _pushed(self, said: Any) -> None:
        if type(said) is wire.Heard:
            self._events.heard(said)
        elif type(said) is wire.Message:
            self._events.message(said)
        elif type(said) is wire.Dropped:
            self._events.missed()
            self._events.changed()
        else:
            self._events.changed()

    # asking

    async def ask(self, kind: Callable[..., wire.Request], *fields: Any) -> Any:
        """Ask, and give the value of the reply.

        Raises:
            StoreUnavailable: the parent is gone or doesn't answer.
            LocalError, Gap: what it says to that.
        """
        if self._transport is None:
            await self._connected()
        return await self._send(kind, *fields)

    def say(self, kind: Callable[..., wire.Request], *fields: Any) -> asyncio.Future[Any] | None:
        """Ask without waiting; None where it isn't connected."""
        return self._send(kind, *fields) if self._transport is not None else None

    async def _connected(self) -> None:
        if not self._open:
            raise StoreUnavailable("The store is closed.")
        if self._reconnecting is not None:
            await asyncio.wait([self._reconnecting], timeout=PATIENCE)
        if self._transport is None:
            raise StoreUnavailable(_GONE)

    def _send(self, kind: Callable[..., wire.Request], *fields: Any) -> asyncio.Future[Any]:
        asked = self._next = self._next + 1
        out = self._out
        before = len(out)
        out.add(kind(asked, *fields))
        if len(out) - before > wire.MAX_MESSAGE:
            out.forget(before)
            raise StoreFull(f"A value or entry of more than {wire.MAX_MESSAGE} bytes exceeds what a store takes.")
        loop = asyncio.get_running_loop()
        future = self._asked[asked] = loop.create_future()
        if len(out) >= wire.FLUSH:
            self._flush()
        elif not self._flushes:
            self._flushes = True
            loop.call_soon(self._flush)
        if self._watch is None:
            self._heard = False
            self._watch = loop.call_later(PATIENCE, self._look)
        return future

    def _flush(self) -> None:
        self._flushes = False
        if self._transport is not None and len(self._out):
            self._transport.write(self._out.take())

    def _look(self) -> None:
        """A parent that stands still mustn't make the worker wait forever."""
        self._watch = None
        if not self._asked:
            return
        if self._heard:
            self._heard = False
            self._watch = asyncio.get_running_loop().call_later(PATIENCE, self._look)
        else:
            self._fail()

    def _fail(self) -> None:
        """Whoever waits for a reply gets an error."""
        asked, self._asked = self._asked, {}
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        for future in asked.values():
            if not future.done():
                future.set_exception(StoreUnavailable(_GONE))
                future.exception()  # nobody has to look at it
