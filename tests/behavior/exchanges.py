"""Raw HTTP requests and replies, through a socket to our own HTTP server or through ASGI in process.

Both return an `Exchange`, whose body can be read whole, or event by event while it's open.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import http_peer
from millstream import Server
from millstream._app.server_process.asgi_application import prepare
from patience import WAIT


@dataclass
class Event:
    """A server-sent event, as a browser would parse it."""

    data: str = ""
    id: str | None = None
    name: str = "message"
    retry: int | None = None


class EventReader:
    """A parser of event streams. It also counts comments."""

    def __init__(self) -> None:
        self._rest = b""
        self._fields: list[tuple[str, str]] = []
        self.comments = 0

    def feed(self, data: bytes) -> list[Event]:
        """Parse more data and return the completed events."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        found: list[Event] = []
        for line in lines:
            text = line.decode().removesuffix("\r")
            if text.startswith(":"):
                self.comments += 1
            elif text:
                name, _, value = text.partition(":")
                self._fields.append((name, value.removeprefix(" ")))
            elif self._fields:
                found.append(self._event())
        return found

    def _event(self) -> Event:
        event = Event("\n".join(value for name, value in self._fields if name == "data"))
        for name, value in self._fields:
            if name == "id":
                event.id = value
            elif name == "event":
                event.name = value
            elif name == "retry":
                event.retry = int(value)
        self._fields.clear()
        return event


@dataclass
class Exchange:
    """The reply to a request. `close` drops the connection."""

    status: int
    headers: dict[str, str]
    chunks: AsyncIterator[bytes]
    drop: Any
    reader: EventReader = field(default_factory=EventReader)

    @property
    def streaming(self) -> bool:
        """True if the reply is an event stream."""
        return self.headers.get("content-type", "").startswith("text/event-stream")

    async def body(self) -> bytes:
        """Read the complete body."""
        async with asyncio.timeout(WAIT):
            return b"".join([chunk async for chunk in self.chunks])

    async def events(self) -> AsyncIterator[Event]:
        """Yield events until the stream ends."""
        async for chunk in self.chunks:
            for event in self.reader.feed(chunk):
                yield event

    def close(self) -> None:
        """Drop the connection."""
        self.drop()


class Http(Protocol):
    """An HTTP client of one server."""

    async def fetch(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Exchange:
        """Send a request, and return when the head of the reply has arrived."""
        ...


class LaneHttp:
    """An HTTP client on real sockets, with a connection for each request."""

    def __init__(self, running: http_peer.RunningServer) -> None:
        self._running = running

    async def fetch(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Exchange:
        peer = await self._running.connect()
        lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        try:
            await peer.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            status, raw = await peer.head()
        except BaseException:
            peer.writer.transport.abort()
            raise
        replied = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw.items()}
        return Exchange(status, replied, self._chunks(peer, status, raw), peer.writer.transport.abort)

    @staticmethod
    async def _chunks(peer: http_peer.Peer, status: int, headers: Mapping[bytes, bytes]) -> AsyncIterator[bytes]:
        if headers.get(b"transfer-encoding") == b"chunked":
            with suppress(asyncio.IncompleteReadError):
                while size := int(await peer.reader.readline(), 16):
                    yield (await peer.reader.readexactly(size + 2))[:-2]
        elif status not in (202, 204) or b"content-length" in headers:
            yield await peer.reader.readexactly(int(headers.get(b"content-length", b"0")))
        peer.close()


class AsgiHttp:
    """An HTTP client that runs the ASGI application in a task for each request."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._tasks: set[asyncio.Task[None]] = set()

    async def fetch(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Exchange:
        target, _, query = path.partition("?")
        given = {"host": "127.0.0.1", "content-length": str(len(body)), **(headers or {})}
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": target, "raw_path": target.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()],
            "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        gone = asyncio.Event()
        sent: asyncio.Queue[Any] = asyncio.Queue()
        asked = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if asked:
                return asked.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if not gone.is_set():
                sent.put_nowait(message)

        task = asyncio.get_running_loop().create_task(self._app(scope, receive, send))
        self._tasks.add(task)
        task.add_done_callback(lambda done: (self._tasks.discard(done), sent.put_nowait(None)))
        try:
            async with asyncio.timeout(WAIT):
                start = await sent.get()
        except BaseException:
            gone.set()
            raise
        assert start is not None, "the application sent no response"
        replied = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}

        async def chunks() -> AsyncIterator[bytes]:
            while (message := await sent.get()) is not None:
                if message.get("body"):
                    yield message["body"]
                if not message.get("more_body"):
                    break
            await asyncio.sleep(0)
            gone.set()

        return Exchange(start["status"], replied, chunks(), gone.set)

    async def close(self) -> None:
        """Cancel the running requests."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def serve_http(server: Server, *, lane: bool) -> AsyncIterator[Http]:
    """Run a server and yield an HTTP client for it."""
    async with server.running() as runtime:
        prepare(server, runtime)
        if lane:
            async with http_peer.serve(server, lane=True) as running:
                yield LaneHttp(running)
        else:
            bridge = AsgiHttp(server)
            try:
                yield bridge
            finally:
                await bridge.close()
