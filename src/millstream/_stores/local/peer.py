"""One worker, as the parent sees it: its connection, which is its lease, and what it asks.

What is pushed to a worker that doesn't read is bounded: hints are dropped, which it's told when it reads again; where
that isn't allowed, its connection is cut, and it's gone. A worker's requests wait while it doesn't take the replies.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any, Final, cast

from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._stores.base import Entry, Gap, Store
from millstream._stores.groups import Groups
from millstream._stores.local import wire
from millstream._stores.memory.topics import Topics
from millstream._stores.tally import Tally

PAUSE_BYTES: Final = 1024 * 1024
"""So much may wait for a worker to read it until its requests wait, too."""
PUSH_BYTES: Final = 8 * 1024 * 1024
"""So much of what may be dropped waits for a worker."""
SEND_BYTES: Final = 16 * 1024 * 1024
"""A worker that leaves so much unread that must not be dropped is gone."""
MAX_TASKS: Final = 1_000
"""Requests of one worker that wait for the store."""
AT_ONCE: Final = 500
"""Requests of one worker that are answered before it's another one's turn."""


class Shared:
    """One open store, and the workers that share it."""

    __slots__ = ("groups", "peers", "store", "tally", "topics")

    def __init__(self, store: Store) -> None:
        self.store = store
        self.groups = Groups(store.log)
        self.tally = Tally(store.kv)
        self.topics = Topics[bytes]()
        self.peers: dict[str, Peer] = {}
        """Those that live, by name."""

    def come(self, peer: "Peer") -> None:
        """A worker has its lease from now on."""
        self.peers[peer.name] = peer
        self.groups.come(peer.name)
        self.tally.come(peer.name)
        self._tell(peer)

    def go(self, peer: "Peer") -> None:
        """Its lease is over."""
        if self.peers.pop(peer.name, None) is not None:
            self.groups.go(peer.name)
            self.tally.go(peer.name)
            self._tell(peer)

    def _tell(self, but: "Peer") -> None:
        for peer in self.peers.values():
            if peer is not but:
                peer.push(wire.Changed())


class Peer(asyncio.Protocol):
    """The connection of one worker."""

    def __init__(self, hello: "Callable[[Peer, wire.Hello], None]", gone: "Callable[[Peer], None]") -> None:
        """It waits for its `Hello`.

        Args:
            hello: called with that; it answers it, and sets `shared` and `name`.
            gone: called when the connection has ended.
        """
        # Configuration
        self._hello = hello
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        # Process
        self.shared: Shared | None = None
        self.name = ""
        # Connection
        self._transport: asyncio.Transport | None = None
        self._frames = wire.Frames(wire.MAX_FRAME)
        self._out = wire.Frame()
        self._flushes = False
        self._paused = False
        self._dropped = False
        self._waiting: deque[wire.Asked] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listens: dict[str, Callable[[], None]] = {}
        self._subscribed: dict[str, Callable[[], None]] = {}

    # the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none, but does what one does
        self._transport.set_write_buffer_limits(PAUSE_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._waiting.clear()
        for stop in (*self._listens.values(), *self._subscribed.values()):
            stop()
        self._listens.clear()
        self._subscribed.clear()
        self._gone(self)

    def abort(self) -> None:
        """The worker is gone from now on."""
        if self._transport is not None:
            self._transport.abort()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._dropped:
            self._dropped = False
            self.write(wire.Dropped())
        self._work()

    # what it asks

    def data_received(self, data: bytes) -> None:
        try:
            for content in self._frames.feed(data):
                self._waiting.extend(wire.requests(content))
        except wire.WireError:
            self.abort()
            return
        self._work()

    def _work(self) -> None:
        """Answer what can be answered now. The rest waits, and with it what the worker asks next."""
        waiting, run, left = self._waiting, self._run, AT_ONCE
        while waiting and left and not self._paused and len(self._tasks) < MAX_TASKS:
            left -= 1
            run(waiting.popleft())
        if not left and waiting:
            self._loop.call_soon(self._work)
        if self._transport is not None and not self._transport.is_closing():
            if waiting:
                self._transport.pause_reading()
            elif not self._transport.is_reading():
                self._transport.resume_reading()

    def _run(self, asked: wire.Asked) -> None:
        """Answer one request at once if its first step does; a store that takes time gets a task."""
        shared = self.shared
        if shared is None:
            if isinstance(asked, wire.Hello) and not self.name:
                self._hello(self, asked)
            else:
                self.abort()
            return
        answer = _ANSWERS[type(asked)](self, shared, asked)
        try:
            step = answer.send(None)
        except StopIteration as done:
            self.write(done.value)
        except (LocalError, Gap, OSError) as exc:
            self.write(failure(asked.id, exc))
        else:
            task = self._loop.create_task(self._rest(asked.id, _resumed(answer, step)))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    async def _rest(self, asked: int, answer: Awaitable[wire.Reply]) -> None:
        try:
            reply = await answer
        except (LocalError, Gap, OSError) as exc:
            reply = failure(asked, exc)
        self.write(reply)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._waiting:
            self._work()

    # what it's told

    def write(self, message: Struct) -> None:
        """Say something; it's sent when this turn of the loop is over."""
        if self._transport is None:
            return
        self._out.add(message)
        if len(self._out) >= wire.FLUSH:
            self._flush()
        elif not self._flushes:
            self._flushes = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushes = False
        if self._transport is not None and len(self._out):
            self._transport.write(self._out.take())

    def push(self, message: Struct) -> None:
        """Say something that may be lost, as long as the worker hears that."""
        if self._dropped or (self._paused and self._unread() > PUSH_BYTES):
            self._dropped = True
        else:
            self.write(message)

    def deliver(self, topic: str, data: bytes) -> bool:
        """Say something that must not be lost while the worker lives; False when it's gone."""
        if self._transport is None or self._transport.is_closing():
            return False
        if self._paused and self._unread() > SEND_BYTES:
            self.abort()
            return False
        self.write(wire.Message(topic, data))  # the worker knows who subscribed, and knew it before this process
        return True

    def listen(self, shared: Shared, stream: str, on: bool) -> None:
        if on and stream not in self._listens:
            self._listens[stream] = shared.store.log.listen(stream, partial(self._hear, stream))
        elif not on and stream in self._listens:
            self._listens.pop(stream)()

    def subscribe(self, shared: Shared, topic: str, on: bool) -> None:
        if on and topic not in self._subscribed:
            self._subscribed[topic] = shared.topics.add(topic, partial(self._receive, topic))
        elif not on and topic in self._subscribed:
            self._subscribed.pop(topic)()

    def _hear(self, stream: str, entry: Entry) -> None:
        self.push(wire.Heard(stream, entry))

    def _receive(self, topic: str, data: bytes) -> None:
        self.push(wire.Message(topic, data))

    def _unread(self) -> int:
        return len(self._out) + (self._transport.get_write_buffer_size() if self._transport is not None else 0)


def failure(asked: int, exc: Exception) -> wire.Reply:
    """A reply that raises the same error in the worker."""
    if isinstance(exc, Gap):
        return wire.Missed(asked, exc.epoch, exc.oldest, exc.newest)
    return wire.Failed(asked, type(exc).__name__, str(exc))


@coroutine
def _resumed(begun: Coroutine[Any, Any, wire.Reply], step: Any) -> Generator[Any, Any, wire.Reply]:
    """Go on with a coroutine whose first step gave `step`."""
    try:
        while True:
            try:
                value = yield step
            except BaseException as exc:  # a cancellation, too, is for the coroutine
                step = begun.throw(exc)
            else:
                step = begun.send(value)
    except StopIteration as done:
        reply: wire.Reply = done.value
        return reply


# One function for each request.


async def _get(peer: Peer, shared: Shared, asked: wire.Get) -> wire.Reply:
    return wire.Plain(asked.id, await shared.store.kv.get(asked.key))


async def _get_many(peer: Peer, shared: Shared, asked: wire.GetMany) -> wire.Reply:
    return wire.Many(asked.id, await shared.store.kv.get_many(asked.keys))


async def _put(peer: Peer, shared: Shared, asked: wire.Put) -> wire.Reply:
    await shared.store.kv.put(asked.key, asked.value, asked.ttl, lossy=asked.lossy)
    return wire.Plain(asked.id, None)


async def _compare_and_set(peer: Peer, shared: Shared, asked: wire.CompareAndSet) -> wire.Reply:
    kv = shared.store.kv
    done = await kv.compare_and_set(asked.key, asked.expected, asked.value, asked.ttl, lossy=asked.lossy)
    return wire.Plain(asked.id, done)


async def _delete(peer: Peer, shared: Shared, asked: wire.Delete) -> wire.Reply:
    return wire.Plain(asked.id, await shared.store.kv.delete(asked.key))


async def _keys(peer: Peer, shared: Shared, asked: wire.Keys) -> wire.Reply:
    return wire.Names(asked.id, await shared.store.kv.keys(asked.prefix))


async def _append(peer: Peer, shared: Shared, asked: wire.Append) -> wire.Reply:
    position = await shared.store.log.append(
        asked.stream, asked.data, ttl=asked.ttl, max_entries=asked.max_entries, index=asked.index, seal=asked.seal
    )
    return wire.At(asked.id, position)


async def _read(peer: Peer, shared: Shared, asked: wire.Read) -> wire.Reply:
    entries = await shared.store.log.read(asked.stream, asked.after, asked.limit, asked.max_bytes)
    return wire.Entries(asked.id, list(entries))


async def _newest(peer: Peer, shared: Shared, asked: wire.Newest) -> wire.Reply:
    return wire.Entries(asked.id, list(await shared.store.log.newest(asked.stream, asked.limit, asked.max_bytes)))


async def _touch(peer: Peer, shared: Shared, asked: wire.Touch) -> wire.Reply:
    return wire.Plain(asked.id, await shared.store.log.touch(asked.stream, asked.ttl))


async def _trim(peer: Peer, shared: Shared, asked: wire.Trim) -> wire.Reply:
    await shared.store.log.trim(asked.stream)
    return wire.Plain(asked.id, None)


async def _listen(peer: Peer, shared: Shared, asked: wire.Listen) -> wire.Reply:
    peer.listen(shared, asked.stream, asked.on)
    return wire.Plain(asked.id, None)


async def _subscribe(peer: Peer, shared: Shared, asked: wire.Subscribe) -> wire.Reply:
    peer.subscribe(shared, asked.topic, asked.on)
    return wire.Plain(asked.id, None)


async def _publish(peer: Peer, shared: Shared, asked: wire.Publish) -> wire.Reply:
    shared.topics.tell(asked.topic, asked.data)
    return wire.Plain(asked.id, None)


async def _send(peer: Peer, shared: Shared, asked: wire.Send) -> wire.Reply:
    to = shared.peers.get(asked.worker)
    return wire.Plain(asked.id, to is not None and to.deliver(asked.topic, asked.data))


async def _join(peer: Peer, shared: Shared, asked: wire.Join) -> wire.Reply:
    return wire.Joined(
        asked.id, await shared.groups.join(peer.name, asked.group, asked.member, asked.value, asked.told)
    )


async def _leave(peer: Peer, shared: Shared, asked: wire.Leave) -> wire.Reply:
    return wire.At(asked.id, await shared.groups.leave(peer.name, asked.group, asked.member, asked.told))


async def _present(peer: Peer, shared: Shared, asked: wire.Present) -> wire.Reply:
    return wire.Pairs(asked.id, shared.groups.present(asked.group))


async def _abandoned(peer: Peer, shared: Shared, asked: wire.Abandoned) -> wire.Reply:
    return wire.Triples(asked.id, shared.groups.abandoned())


async def _alive(peer: Peer, shared: Shared, asked: wire.Alive) -> wire.Reply:
    return wire.Plain(asked.id, asked.worker in shared.peers)


async def _clock(peer: Peer, shared: Shared, asked: wire.Clock) -> wire.Reply:
    return wire.Plain(asked.id, shared.store.time())


async def _doubt(peer: Peer, shared: Shared, asked: wire.Doubt) -> wire.Reply:
    return wire.Plain(asked.id, (await shared.store.doubt()).encode())


async def _take(peer: Peer, shared: Shared, asked: wire.Take) -> wire.Reply:
    return wire.Decided(asked.id, await shared.tally.take(peer.name, asked.charges))


async def _vacate(peer: Peer, shared: Shared, asked: wire.Vacate) -> wire.Reply:
    shared.tally.leave(peer.name, asked.seats)
    return wire.Plain(asked.id, None)


async def _again(peer: Peer, shared: Shared, asked: wire.Hello) -> wire.Reply:
    raise LocalError("A worker says hello once.")


_ANSWERS: Final[dict[type[wire.Request], Callable[[Peer, Shared, Any], Coroutine[Any, Any, wire.Reply]]]] = {
    wire.Hello: _again, wire.Get: _get, wire.GetMany: _get_many, wire.Put: _put, wire.Delete: _delete,
    wire.CompareAndSet: _compare_and_set, wire.Keys: _keys, wire.Append: _append, wire.Read: _read,
    wire.Newest: _newest, wire.Touch: _touch, wire.Trim: _trim, wire.Listen: _listen, wire.Subscribe: _subscribe,
    wire.Publish: _publish, wire.Send: _send, wire.Join: _join, wire.Leave: _leave, wire.Present: _present,
    wire.Abandoned: _abandoned, wire.Alive: _alive, wire.Clock: _clock,
    wire.Doubt: _doubt, wire.Take: _take, wire.Vacate: _vacate,
}  # fmt: skip
