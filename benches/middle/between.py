"""Connects another library's client to its server object through Millstream, in one process and without sockets."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from millstream._app.gateway_server import server_of

URL = "http://127.0.0.1:8000"
"""Base URL of the requests. Nothing listens there."""
WAIT = 30.0
Message = dict[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


@contextlib.asynccontextmanager
async def serve(program: Any) -> AsyncIterator[Application]:
    """Serve a server object as ``millstream run`` does, and yield the ASGI application.

    Raises:
        RuntimeError: It doesn't start.
    """
    application = server_of(program)
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    outbox: asyncio.Queue[Message] = asyncio.Queue()
    running = asyncio.create_task(
        application({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, inbox.get, outbox.put)
    )
    try:
        await inbox.put({"type": "lifespan.startup"})
        started = await asyncio.wait_for(outbox.get(), WAIT)
        if started["type"] != "lifespan.startup.complete":
            raise RuntimeError(started.get("message", ""))
        yield application
    finally:
        await inbox.put({"type": "lifespan.shutdown"})
        await asyncio.wait([running], timeout=WAIT)
        running.cancel()


class Exchange:
    """One HTTP request to an application, and its response."""

    def __init__(self, request: Any, body: bytes) -> None:
        self.request = request
        self.chunks: asyncio.Queue[bytes] = asyncio.Queue()
        """Parts of the response's body; empty bytes at the end."""
        self.start: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.disconnected = asyncio.Event()
        """Set when the client has left."""
        self._received = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive(self) -> Message:
        """See ASGI."""
        if not self._received:
            await self.disconnected.wait()
        return self._received.pop() if self._received else {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """See ASGI."""
        if message["type"] == "http.response.start":
            self.start.set_result(message)
        elif chunk := message.get("body"):
            self.chunks.put_nowait(chunk)

    async def run(self, application: Application) -> None:
        """Let an application respond."""
        try:
            await application(_scope(self.request), self.receive, self.send)
        except Exception as error:
            if self.start.done():
                raise
            self.start.set_exception(error)
        finally:
            self.chunks.put_nowait(b"")


@contextlib.asynccontextmanager
async def open_http(http: ModuleType, application: Application) -> AsyncIterator[Any]:
    """Yield a client of ``httpx`` or ``httpx2`` whose requests an ASGI application answers, and whose responses stream.

    Args:
        http: The module.
        application: The application.
    """
    running: set[asyncio.Task[None]] = set()

    class Body(http.AsyncByteStream):  # type: ignore[misc]
        def __init__(self, exchange: Exchange) -> None:
            self.exchange = exchange

        async def __aiter__(self) -> AsyncIterator[bytes]:
            while chunk := await self.exchange.chunks.get():
                yield chunk

        async def aclose(self) -> None:
            self.exchange.disconnected.set()

    class Transport(http.AsyncBaseTransport):  # type: ignore[misc]
        async def handle_async_request(self, request: Any) -> Any:
            exchange = Exchange(request, b"".join([chunk async for chunk in request.stream]))
            task = asyncio.create_task(exchange.run(application))
            running.add(task)
            task.add_done_callback(running.discard)
            try:
                start = await exchange.start
            except BaseException:
                exchange.disconnected.set()
                raise
            return http.Response(start["status"], headers=start["headers"], stream=Body(exchange), request=request)

    try:
        async with http.AsyncClient(transport=Transport(), base_url=URL, timeout=WAIT) as client:
            yield client
    finally:
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _scope(request: Any) -> Message:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": request.url.raw_path.partition(b"?")[0],
        "query_string": request.url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }


class Outcomes:
    """A pytest plugin that writes the outcome of each test to a file, as a JSON object."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.outcomes: dict[str, tuple[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the worst outcome of the phases of a test."""
        before = self.outcomes.get(report.nodeid, ("", ""))[0]
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.outcomes[report.nodeid] = "failed", str(crash.message if crash is not None else report.longrepr)[-500:]
        elif not before and (report.skipped or report.when == "call"):
            self.outcomes[report.nodeid] = "skipped" if report.skipped else "passed", ""

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        self.file.write_text(json.dumps(self.outcomes), "utf-8")


def record(config: pytest.Config) -> bool:
    """Record the outcomes of this run. Return whether Millstream should be between clients and servers."""
    if not hasattr(config, "workerinput"):  # workers report to the process that has started them
        config.pluginmanager.register(Outcomes(Path(os.environ["OUTCOMES"])))
    return "ALONE" not in os.environ
