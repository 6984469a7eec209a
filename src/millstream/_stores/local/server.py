"""The parent's side: one instance of each store that its workers request, and one connection per worker.

The parent doesn't run the application, so each worker requests its store by URL. A worker's lease ends with its
connection. If a worker doesn't read, entries beyond a bound are dropped, and it gets a notice when it reads again. Its
calls wait until it has read their replies.
"""

import asyncio
import os
import shutil
import socket
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import coroutine
from typing import Any, cast

from msgspec import Struct, field

from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._stores.base import Backend, Entry, Gap, Position
from millstream._stores.local.calls import (
    BY_REQUEST,
    HELLO,
    MAX_FRAME,
    VERSION,
    DropNotice,
    EntryPush,
    FrameConnection,
    StoreFailure,
    StoreReply,
    private_socket,
    read_requests,
    sweep,
)
from millstream._stores.workers import expire
from millstream._tasks import SingleFlight, Tasks

PAUSE_BYTES = 1024 * 1024
"""Unread bytes above which a worker's calls wait."""
PUSH_BYTES = 8 * 1024 * 1024
"""Unread bytes above which entries for a worker are dropped."""
MAX_TASKS = 1_000
"""Maximum pending calls to the store per worker."""
AT_ONCE = 500
"""Maximum calls per worker that run before other workers get a turn."""


class WorkerConnection(FrameConnection):
    """The connection of one worker. It implements `StoreSession`."""

    max_frame = MAX_FRAME

    def __init__(self, server: "LocalServer") -> None:
        self._server = server
        self.backend: Backend | None = None
        """The store that the worker opened."""
        self.worker = ""
        """The worker's name, under which it has its lease."""
        # Connection
        self._process: int | None = None
        """A descriptor of the worker's process, which becomes readable when the process ends."""
        self._parts: dict[str, Any] = {"session": self}
        """Objects that implement the requests, by `StoreCall.part`."""
        self._paused = False
        self._dropped = False
        self._waiting: deque[Any] = deque()
        self._tasks = Tasks()
        self._listens: dict[str, Callable[[], None]] = {}

    # The connection

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.peers.add(self)
        cast("asyncio.Transport", transport).set_write_buffer_limits(PAUSE_BYTES)
        # Processes that the worker has forked, such as a pool's, keep its connection open after its end.
        with suppress(AttributeError, OSError):  # Linux has this, unless it's old
            worker = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED)
            self._process = os.pidfd_open(worker)
            self._loop.add_reader(self._process, self.abort)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._process is not None:
            self._loop.remove_reader(self._process)
            os.close(self._process)
        self._transport = None
        self._waiting.clear()
        for stop in self._listens.values():
            stop()
        self._listens.clear()
        self._server.forget(self)

    @override
    def pause_writing(self) -> None:
        self._paused = True

    @override
    def resume_writing(self) -> None:
        self._paused = False
        if self._dropped:
            self._dropped = False
            self._write(DropNotice())
        self._work()

    @override
    def data_received(self, data: bytes) -> None:
        try:
            for content in self._frames.feed(data):
                self._waiting.extend(read_requests(content))
        except ValueError:  # the data isn't a valid frame
            self.abort()
            return
        self._work()

    # Calls

    def _work(self) -> None:
        """Respond to pending requests in order. Later requests from the worker wait for slow ones."""
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

    def _run(self, request: Any) -> None:
        """Run a call. Reply immediately if it doesn't suspend, else finish it in a task."""
        call = BY_REQUEST[type(request)]
        if (self.backend is None) != (call is HELLO):
            self.abort()
            return
        answer = call.run(self._parts[call.part], request)
        try:
            step = answer.send(None)
        except StopIteration as done:
            self._write(StoreReply(request.id, done.value))
        except (LocalError, Gap, OSError) as exc:
            self._write(StoreFailure.of(request.id, exc))
        else:
            task = self._tasks.spawn(self._finish(request.id, _resume(answer, step)))
            task.add_done_callback(self._on_task_done)

    async def _finish(self, id: int, answer: Any) -> None:
        try:
            self._write(StoreReply(id, await answer))
        except (LocalError, Gap, OSError) as exc:
            self._write(StoreFailure.of(id, exc))

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if self._waiting:
            self._work()

    # `StoreSession`

    async def hello(self, version: int, url: str) -> str:
        backend = await self._server.admit(version, url)
        self.backend = backend
        self._parts |= {"backend": backend, "kv": backend.kv, "log": backend.log}
        return backend.epoch

    async def bind(self, worker: str) -> None:
        self.worker = worker

    async def listen(self, channel: str, on: bool) -> None:
        if on and channel not in self._listens:
            stream, is_topic, topic = channel.partition("\0")
            self._listens[channel] = self._parts["log"].listen(
                stream, partial(self._push, channel), interrupted=self._drop, topic=topic if is_topic else None
            )
        elif not on and channel in self._listens:
            self._listens.pop(channel)()

    async def mark(self, stream: str) -> Position | None:
        newest: Position | None = await self._parts["log"].wait_until_listening(stream)
        return None if self._dropped else newest

    def _push(self, channel: str, entry: Entry) -> None:
        if self._dropped or (self._paused and self.unread > PUSH_BYTES):
            self._dropped = True
        else:
            self._write(EntryPush(channel, entry))

    def _drop(self) -> None:
        if self._paused:
            self._dropped = True
        else:
            self._write(DropNotice())

    @property
    def unread(self) -> int:
        """Return the number of bytes that the worker hasn't read yet."""
        return len(self._out) + (self._transport.get_write_buffer_size() if self._transport is not None else 0)


@coroutine
def _resume(begun: Coroutine[Any, Any, Any], step: Any) -> Generator[Any, Any, Any]:
    """Continue a coroutine whose first step yielded `step`."""
    try:
        while True:
            try:
                value = yield step
            except BaseException as exc:  # the coroutine must also get cancellations
                step = begun.throw(exc)
            else:
                step = begun.send(value)
    except StopIteration as done:
        return done.value


class LocalServer(Struct, eq=False):
    """A server that shares stores with worker processes.

    Example:
        >>> server = LocalServer(backend_for)
        >>> address = await server.start()  # each worker passes it to `use_parent`
        >>> await server.close()
    """

    _backend_for: Callable[[str], Backend]
    """Returns the store of a URL."""
    address: str = ""
    """The path of the socket, set by `start`."""
    peers: set[WorkerConnection] = set()
    _backends: dict[str, Backend] = {}
    """Backends by URL."""
    _opening: SingleFlight[Backend] = field(default_factory=SingleFlight[Backend])
    _departures: Tasks = field(default_factory=Tasks)
    _listener: asyncio.Server | None = None

    async def start(self, listener: socket.socket | None = None) -> str:
        """Listen, and return the address.

        Args:
            listener: A socket of the caller. By default, there's one in a new folder.

        Raises:
            OSError: The server can't listen.
        """
        if listener is None:
            await asyncio.to_thread(sweep)
            self.address = str(private_socket())
        self._listener = await asyncio.get_running_loop().create_unix_server(
            partial(WorkerConnection, self), self.address or None, sock=listener, backlog=1024
        )
        return self.address

    async def close(self) -> None:
        """Abort the connections and close the stores. Idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for peer in list(self.peers):
            peer.abort()
        await self._departures.close()
        await self._opening.settle()
        while self._backends:
            with suppress(LocalError, OSError):
                await self._backends.popitem()[1].close()
        if self.address:
            shutil.rmtree(Path(self.address).parent, ignore_errors=True)

    async def admit(self, version: int, url: str) -> Backend:
        """Return the store that a worker requests.

        Raises:
            LocalError: The store can't be opened, or the worker speaks another protocol version.
        """
        if version != VERSION:
            raise LocalError(
                "The workers run a different version of Millstream than their parent process, which was started "
                "before an update. Stop the whole program and start it again."
            )
        return self._backends.get(url) or await self._opening.run(url, lambda: self._open_backend(url))

    def forget(self, peer: WorkerConnection) -> None:
        """End the lease of a worker whose connection has ended."""
        self.peers.discard(peer)
        if peer.backend is not None and peer.worker:
            self._departures.spawn(expire(peer.backend, peer.worker))

    async def _open_backend(self, url: str) -> Backend:
        backend = self._backend_for(url)
        await backend.open()
        self._backends[url] = backend
        return backend


@asynccontextmanager
async def run_local_server(backend_for: Callable[[str], Backend]) -> AsyncGenerator[str, None]:
    """Run a `LocalServer` inside an ``async with`` block. Yields its address as text.

    Raises:
        OSError: The server can't listen.
    """
    server = LocalServer(backend_for)
    try:
        yield await server.start()
    finally:
        await server.close()
