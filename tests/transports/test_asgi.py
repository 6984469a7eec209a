import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from cases import for_each
from http_messages import Handler, HttpRequest, Response
from http_peer import STREAM_HEAD, WAIT, Endpoints, HostPolicy, HttpLimits
from millstream import Settings
from millstream._http.asgi import AsgiAdapter, header_list, header_lists

DISCONNECT = {"type": "http.disconnect"}


class Peer:
    """The server's side of one request."""

    def __init__(self, messages: Iterable[dict[str, Any]] = ({"type": "http.request"},), **scope: Any) -> None:
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": "/echo",
            "headers": [(b"host", b"localhost")],
        } | scope
        self.messages = list(messages)
        self.gone = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self.broken = False

    async def receive(self) -> dict[str, Any]:
        """What the peer says; then it waits until the peer leaves."""
        if self.messages:
            return self.messages.pop(0)
        await self.gone.wait()
        return DISCONNECT

    async def send(self, message: Any) -> None:
        """Keep it, or fail as an ASGI 2.4 server does when the peer is gone."""
        if self.broken:
            raise OSError
        self.sent.append(message)

    async def ask(self, handler: Handler | None, **settings: Any) -> tuple[int, bytes]:
        """Run the adapter; the status and the body it sent."""
        adapter = AsgiAdapter(
            Endpoints(lambda method, path: handler, limits=HttpLimits.of(Settings(**settings)), policy=HostPolicy())
        )
        await asyncio.wait_for(adapter(self.scope, self.receive, self.send), WAIT)
        return self.answer()

    def answer(self) -> tuple[int, bytes]:
        """What has been sent so far."""
        assert [message["type"] for message in self.sent[:1]] == ["http.response.start"]
        return self.sent[0]["status"], b"".join(message["body"] for message in self.sent[1:])


async def _echo(request: HttpRequest) -> Response:
    return Response(body=request.body)


async def _where(request: HttpRequest) -> Response:
    return Response(body=f"{request.root_path}|{request.path}".encode())


@for_each(
    ("root", "path", "expected"),
    [
        ("", "/mcp", "|/mcp"),
        ("/echo", "/echo/mcp", "/echo|/mcp"),
        ("/echo", "/mcp", "/echo|/mcp"),
        ("/echo", "/echo", "/echo|/"),
        ("/echo", "/echo/", "/echo|/"),
        ("/echo", "/echoes", "/echo|/echoes"),
    ],
)
async def test_mount_path_follows_either_asgi_convention(root: str, path: str, expected: str) -> None:
    assert await Peer(root_path=root, path=path).ask(_where) == (200, expected.encode())


async def test_minimal_scope_is_accepted() -> None:

    async def describe(request: HttpRequest) -> Response:
        return Response(body=f"{request.peer}|{request.scheme}|{request.root_path}|{request.query!r}".encode())

    assert await Peer().ask(describe) == (200, b"|http||b''")


async def test_body_messages_are_joined() -> None:
    messages = [
        {"type": "http.request", "body": b"ab", "more_body": True},
        {"type": "http.request", "more_body": True},
        {"type": "http.request", "body": b"cd"},
    ]
    assert await Peer(messages).ask(_echo) == (200, b"abcd")


@for_each("more", [False, True])
async def test_oversized_body_without_content_length_gets_413(more: bool) -> None:
    messages = [{"type": "http.request", "body": b"x" * 11, "more_body": more}]
    status, _ = await Peer(messages).ask(_echo, max_body=10)
    assert status == 413


async def test_disconnect_during_the_body_starts_no_handler() -> None:
    for messages in ([DISCONNECT], [{"type": "http.request", "body": b"a", "more_body": True}, DISCONNECT]):
        peer = Peer(messages)
        adapter = AsgiAdapter(
            Endpoints(lambda method, path: _fail, limits=HttpLimits.of(Settings()), policy=HostPolicy())
        )
        await adapter(peer.scope, peer.receive, peer.send)
        assert peer.sent == []


async def _fail(request: HttpRequest) -> Response:
    raise AssertionError


async def test_canceling_the_server_task_cancels_the_handler() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def work(request: HttpRequest) -> None:
        request.open(200, STREAM_HEAD)
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(Peer().ask(work))
    await asyncio.wait_for(began.wait(), WAIT)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_cancellation_after_a_disconnect_is_swallowed() -> None:
    began = asyncio.Event()

    async def work(request: HttpRequest) -> None:
        request.cancel_on_disconnect = True
        began.set()
        await asyncio.Event().wait()

    peer = Peer()
    adapter = AsgiAdapter(Endpoints(lambda method, path: work, limits=HttpLimits.of(Settings()), policy=HostPolicy()))
    task = asyncio.create_task(adapter(peer.scope, peer.receive, peer.send))
    await asyncio.wait_for(began.wait(), WAIT)
    peer.gone.set()
    await asyncio.wait_for(task, WAIT)
    assert task.cancelling() == 0
    assert peer.sent == []


async def test_handlers_can_finish_after_a_disconnect() -> None:
    began, finished = asyncio.Event(), asyncio.Event()

    async def work(request: HttpRequest) -> Response:
        request.cancel_on_disconnect = True
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        finished.set()
        return Response()

    peer = Peer()
    adapter = AsgiAdapter(Endpoints(lambda method, path: work, limits=HttpLimits.of(Settings()), policy=HostPolicy()))
    task = asyncio.create_task(adapter(peer.scope, peer.receive, peer.send))
    await asyncio.wait_for(began.wait(), WAIT)
    peer.gone.set()
    await asyncio.wait_for(task, WAIT)
    assert finished.is_set()
    assert task.cancelling() == 0
    assert peer.sent == []


async def test_waiting_handlers_can_be_stopped() -> None:
    requests: asyncio.Queue[HttpRequest] = asyncio.Queue()

    async def work(request: HttpRequest) -> Response:
        requests.put_nowait(request)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        return Response(body=b"stopped")

    task = asyncio.create_task(Peer().ask(work))
    request = await asyncio.wait_for(requests.get(), WAIT)
    await asyncio.sleep(0)
    assert request.cancel is not None
    request.cancel()
    assert await asyncio.wait_for(task, WAIT) == (200, b"stopped")


async def test_send_errors_for_a_lost_peer_end_the_stream() -> None:
    peer = Peer()
    closed = asyncio.Event()

    async def stream(request: HttpRequest) -> None:
        sink = request.open(200, STREAM_HEAD)
        sink.on_close(closed.set)
        sink.write(b"one")
        await asyncio.sleep(0)
        peer.broken = True
        sink.write(b"two")
        await sink.wait_closed()
        await sink.wait_closed()

    await peer.ask(stream)
    assert closed.is_set()


async def test_failing_callback_does_not_block_the_others(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[int] = []

    def fail() -> None:
        raise ValueError("mine")

    async def stream(request: HttpRequest) -> None:
        sink = request.open(200, STREAM_HEAD)
        sink.on_close(fail)
        sink.on_close(lambda: heard.append(1))

    assert await Peer().ask(stream) == (200, b"")
    assert heard == [1]
    assert "mine" in caplog.text


async def test_streams_report_unsent_bytes() -> None:
    sizes: list[int] = []

    async def stream(request: HttpRequest) -> None:
        sink = request.open(200, STREAM_HEAD)
        sizes.append(sink.buffered)
        sink.write(b"12345")
        sizes.append(sink.buffered)
        for _ in range(5):
            await asyncio.sleep(0)
        sizes.append(sink.buffered)

    assert await Peer().ask(stream) == (200, b"12345")
    assert sizes == [0, 5, 0]


def test_parsed_heads_are_cached_within_bounds() -> None:
    assert header_list(b"a: b\r\nc: d: e\r\n") == [(b"a", b"b"), (b"c", b"d: e")]
    for number in range(1000):
        header_list(b"x: %d\r\n" % number)
    assert len(header_lists) <= 256
