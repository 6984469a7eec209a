"""A TCP proxy in a thread, whose connections break as a test demands."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from patience import WAIT


class FaultyProxy:
    """A proxy on `port`, in front of one server."""

    down = False
    """Whether it responds with 502 itself."""

    def __init__(self, backend: int, budget: Callable[[], int | None]) -> None:
        self.port = 0
        self.connections = 0
        """Number of connections so far."""
        self._backend = backend
        self._budget = budget
        self._writers: set[StreamWriter] = set()
        self._dead: set[StreamWriter] = set()
        self._loop: asyncio.AbstractEventLoop
        self._stopped = asyncio.Event()

    def silence(self) -> None:
        """Forward nothing more on all current connections, and don't close them."""
        self._call(lambda: self._dead.update(self._writers))

    def cut(self) -> None:
        """Reset all current connections."""
        self._call(lambda: [each.transport.abort() for each in tuple(self._writers)])

    def _call(self, function: Callable[[], object]) -> None:
        async def run() -> None:
            function()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(WAIT)

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.connections += 1
        if self.down:
            with suppress(OSError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                writer.close()
            return
        try:
            upstream, sink = await asyncio.open_connection("127.0.0.1", self._backend)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, sink}
        self._writers |= both
        try:
            await asyncio.gather(self._pump(reader, sink, None), self._pump(upstream, writer, self._budget()))
        finally:
            self._writers -= both
            for each in both - self._dead:
                each.close()

    async def _pump(self, reader: StreamReader, writer: StreamWriter, budget: int | None) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if writer in self._dead:
                    continue
                if budget is not None and (budget := budget - len(data)) < 0:
                    writer.write(data[:budget])
                    await writer.drain()
                    break
                writer.write(data)
                await writer.drain()
        if writer not in self._dead:
            writer.close()

    def run(self, started: Callable[[], object]) -> None:
        """Serve until `stop`, in the calling thread."""
        asyncio.run(self._run(started))

    async def _run(self, started: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started()
        await self._stopped.wait()
        server.close()
        for each in tuple(self._writers):
            each.transport.abort()

    def stop(self) -> None:
        """Close all connections."""
        self._call(self._stopped.set)


@contextmanager
def faulty_proxy(backend: int, budget: Callable[[], int | None] = lambda: None) -> Iterator[FaultyProxy]:
    """Run a proxy in front of a port. `budget` returns after how many bytes to the client a new connection breaks."""
    proxy, started = FaultyProxy(backend, budget), Event()
    thread = Thread(target=proxy.run, args=(started.set,), daemon=True)
    thread.start()
    assert started.wait(WAIT)
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(WAIT)
